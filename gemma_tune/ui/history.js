// The table of runs: asks every few seconds while it is seen. Text goes through textContent only.
const box = element.querySelector('[data-at="runs"]');
let shown = "", sure = null;
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

function button(row, action, label, kind) {
  const node = make("button", `gt-button gt-small gt-${kind}`, label);
  node.type = "button";
  node.addEventListener("click", () => {
    if (action === "delete" && sure !== row.run) { sure = row.run; shown = ""; show(box.rows); return; }
    sure = null;
    trigger("run_action", { action, run: row.run });
    setTimeout(refresh, 400);
  });
  return node;
}

function card(row) {
  const node = make("article", "gt-card gt-run"), title = make("div", "gt-title"), buttons = make("div", "gt-buttons");
  title.append(make("h3", "", row.name), make("p", "", row.what), make("p", "gt-note", row.result || row.path));
  buttons.append(button(row, "watch", "Watch", "plain"));
  if (row.can_compare) buttons.append(button(row, "compare", "Compare", "plain"));
  if (row.can_resume) buttons.append(button(row, "resume", "Resume", "plain"));
  buttons.append(button(row, "reuse", "Use again", "plain"));
  if (!row.live) buttons.append(sure === row.run ? button(row, "delete", "Really delete?", "danger") : button(row, "delete", "Delete", "plain"));
  const facts = make("dl", "gt-times");
  for (const [name, value] of [["Step", row.step], ["Loss", row.loss], ["Started", row.when]]) {
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", "", value));
    facts.append(pair);
  }
  node.append(make("span", `gt-pill gt-${row.tone}`, row.label), title, facts, buttons);
  return node;
}

function show(rows) {
  const key = JSON.stringify(rows) + sure;
  if (key === shown) return;
  shown = key;
  box.rows = rows;
  if (rows.length) { box.replaceChildren(...rows.map(card)); return; }
  const empty = make("div", "gt-empty");
  empty.append(make("strong", "", "No runs yet"), make("p", "", "Set one up: with Pocket Gemma the first takes about a minute."));
  box.replaceChildren(empty);
}

async function refresh() {
  try { show(await server.rows({})); } catch (error) { shown = ""; }
}

(async () => {
  while (element.isConnected) {
    if (!document.hidden && element.offsetParent !== null) await refresh();
    await new Promise((done) => setTimeout(done, 2500));
  }
})();
