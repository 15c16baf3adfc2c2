// The live monitor: asks the server about once a second for what is new since its cursor, and draws it.
// All text of runs, data and models goes through textContent: nothing of it is ever parsed as HTML.
const at = (name) => element.querySelector(`[data-at="${name}"]`);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const NUMBER = new Intl.NumberFormat("en");
const LOG_LINES = 1500;
let run = null, cursor = null, train, evals, hardware, measures, clock, misses = 0, confirming = null, plotly = null, draws = 0;

function forget() {
  cursor = { attempt: -1, version: -1, train: 0, evals: 0, hardware: 0, measures: 0, log: 0 };
  train = { step: [], loss: [], rate: [], norm: [] };
  evals = { step: [], loss: [] };
  hardware = { time: [], cpu: [], memory: [], gpu: [] };
  measures = { charts: [], columns: { step: [] } };
  clock = null;
  confirming = null;
  at("log").replaceChildren();
  at("samples").replaceChildren();
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, Math.round(seconds)), h = Math.floor(s / 3600), m = Math.floor((s % 3600) / 60);
  return h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

// ---- header, cards, actions -------------------------------------------------------------------------------------
function showHead(head) {
  const pill = at("pill");
  pill.className = `gt-pill gt-${head.tone}`;
  pill.textContent = head.label;
  at("name").textContent = head.name;
  at("about").textContent = head.about;
  at("phase").textContent = head.phase;
  at("bar").style.width = `${(100 * head.progress).toFixed(1)}%`;
  at("track").setAttribute("aria-valuenow", Math.round(100 * head.progress));
  at("track").classList.toggle("gt-busy", head.busy);
  clock = { live: head.live, elapsed: head.elapsed_seconds, remaining: head.remaining_seconds, at: performance.now() };
  tick();
}

function tick() {
  if (!clock) return;
  const passed = clock.live ? (performance.now() - clock.at) / 1000 : 0;
  at("elapsed").textContent = span(clock.elapsed === null ? null : clock.elapsed + passed);
  at("remaining").textContent = clock.remaining === null ? "–" : span(clock.remaining - passed);
  at("remaining-box").hidden = !clock.live;
}

function showCards(cards) {
  const box = at("cards");
  for (const card of cards) {
    let node = box.querySelector(`[data-card="${card.id}"]`);
    if (!node) {
      node = make("div", "gt-card gt-figure");
      node.dataset.card = card.id;
      node.append(make("span", "gt-label", card.label), make("strong", "", ""), make("span", "gt-note", ""));
      box.append(node);
    }
    node.children[1].textContent = card.value;
    node.children[2].textContent = card.note;
    node.children[2].className = `gt-note gt-${card.tone || "plain"}`;
  }
}

function showNotice(notice) {
  const box = at("notice");
  box.hidden = !notice;
  if (!notice) return;
  box.className = `gt-notice gt-${notice.tone}`;
  const parts = [make("strong", "", notice.title), make("p", "", notice.text)];
  if (notice.way_out) parts.push(make("p", "gt-wayout", notice.way_out));
  if (notice.log_tail.length) {
    const details = make("details"), pre = make("pre", "", notice.log_tail.join("\n"));
    details.append(make("summary", "", "Last lines of the log"), pre);
    parts.push(details);
  }
  box.replaceChildren(...parts);
}

function showActions(actions) {
  const key = JSON.stringify([actions, confirming]);
  const box = at("actions");
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...actions.map((action) => {
    const asks = confirming === action.id;
    const button = make("button", `gt-button gt-${asks ? "danger" : action.kind}`, asks ? action.confirm : action.label);
    button.type = "button";
    button.title = action.help;
    button.addEventListener("click", () => {
      if (action.confirm && !asks) {
        confirming = action.id;
        showActions(actions);
        setTimeout(() => { if (confirming === action.id) { confirming = null; showActions(actions); } }, 5000);
        return;
      }
      confirming = null;
      button.disabled = true;
      trigger("run_action", { action: action.id, run });
    });
    const item = make("div", "gt-action");
    item.append(button, make("span", "gt-note", action.help));
    return item;
  }));
}

function showLog(log) {
  const box = at("log");
  if (log.from !== cursor.log) box.replaceChildren();
  const follow = at("follow").checked;
  for (const [text, level] of log.lines) box.append(make("div", level === "error" ? "gt-bad" : "", text));
  while (box.childElementCount > LOG_LINES) box.firstChild.remove();
  at("log-empty").hidden = box.childElementCount > 0;
  cursor.log = log.to;
  if (follow && log.lines.length) box.scrollTop = box.scrollHeight;
}

// The objective's own measures: a small chart each, laid out before their first point so that nothing moves.
function showMeasures(told) {
  if (JSON.stringify(told.charts) !== JSON.stringify(measures.charts)) {
    measures.charts = told.charts;
    at("measures").replaceChildren(...told.charts.map((chart) => {
      const card = make("section", "gt-card"), head = make("div", "gt-cardhead"), box = make("div", "gt-chart gt-short");
      head.append(make("h3", "", chart.title));
      const names = Object.values(chart.lines);
      if (names.length > 1) names.forEach((name, index) => head.append(make("span", `gt-key gt-k${index + 1}`, name)));
      const plot = make("div");
      plot.dataset.at = `measure-${chart.id}`;
      box.append(plot);
      card.append(head, box);
      return card;
    }));
  }
  at("measures").hidden = !told.charts.length;
  for (const [name, values] of Object.entries(told.columns)) {
    if (name !== "to") (measures.columns[name] = measures.columns[name] || []).push(...values);
  }
  cursor.measures = told.to;
}

function drawMeasures(Plotly, options) {
  const inks = [colour("--gt-accent"), colour("--gt-warm"), colour("--gt-quiet")];
  if (!measures.columns.step.length) return;
  for (const chart of measures.charts) {
    const lines = Object.entries(chart.lines).map(([name, words], index) =>
      line(measures.columns.step, measures.columns[name], words, inks[index], 2, chart.share ? { hovertemplate: "%{y:.0%}" } : {}));
    Plotly.react(at(`measure-${chart.id}`), lines, layout({ xaxis: { title: { text: "step" }, rangemode: "tozero" },
      yaxis: chart.share ? { range: [0, 1.02], tickformat: ".0%" } : {} }), options);
  }
}

function pictures(sources) {
  const row = make("div", "gt-asked");
  for (const source of sources.filter(Boolean)) row.append(Object.assign(make("img"), { src: source, alt: "Image of the question" }));
  return row;
}

function showReport(report, samples) {
  at("report").hidden = !report && !samples.length;
  at("report-figures").replaceChildren();
  if (report) {
    for (const [label, base, tuned] of report.rows) {
      const row = make("div", "gt-versus");
      row.append(make("span", "gt-label", label), make("span", "gt-base", base), make("span", "gt-arrow", "→"),
        make("strong", "", tuned));
      at("report-figures").append(row);
    }
    at("report-note").textContent = report.note;
  }
  const rows = samples.map((sample) => {
    const row = make("tr");
    for (const key of ["prompt", "expected", "base", "tuned"]) {
      const cell = make("td", key === "tuned" || key === "base" ? (sample[key] === sample.expected ? "gt-right" : "") : "");
      if (key === "prompt" && sample.pictures) cell.append(pictures(sample.pictures));
      cell.append(make("div", "", sample[key]));
      cell.dataset.label = key;
      row.append(cell);
    }
    return row;
  });
  at("samples").replaceChildren(...rows);
}

// ---- charts ------------------------------------------------------------------------------------------------------
const colour = (name) => getComputedStyle(element).getPropertyValue(name).trim();

function smooth(values, weight) {
  let mean = 0, mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

function layout(extra) {
  const axis = { gridcolor: colour("--gt-line"), zeroline: false, tickcolor: colour("--gt-line"), automargin: true };
  return {
    margin: { l: 44, r: 12, t: 6, b: 34 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--gt-quiet"), size: 12, family: "system-ui, sans-serif" }, showlegend: false, uirevision: run,
    datarevision: draws, // the arrays grow in place, so Plotly must be told that they changed
    hovermode: "x unified", hoverlabel: { bgcolor: colour("--gt-surface"), bordercolor: colour("--gt-line"),
      font: { color: colour("--gt-ink") } },
    ...extra, xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
  };
}

function line(x, y, name, ink, width, more) {
  return { x, y, name, mode: "lines", line: { color: ink, width }, ...more };
}

async function draw() {
  draws += 1;
  if (!train.step.length && !evals.step.length && !hardware.time.length) return;
  plotly = plotly || loadPlotly();
  const Plotly = await plotly;
  if (!Plotly || !element.isConnected) return;
  const weight = Number(at("smoothing").value), accent = colour("--gt-accent"), warm = colour("--gt-warm");
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  if (train.step.length || evals.step.length) {
    at("loss-empty").hidden = true;
    const marks = train.step.length < 2 ? { mode: "lines+markers" } : {};
    Plotly.react(at("loss"), [
      line(train.step, train.loss, "training", accent, 1, { opacity: weight ? 0.35 : 1, ...marks }),
      ...(weight ? [line(train.step, smooth(train.loss, weight), "smoothed", accent, 2.5, { hoverinfo: "skip" })] : []),
      line(evals.step, evals.loss, "validation", warm, 2.5, { mode: "lines+markers", marker: { size: 7 } }),
    ], layout({ xaxis: { title: { text: "step" }, rangemode: "tozero" },
      yaxis: { type: at("logscale").checked ? "log" : "linear" } }), options);
  }
  if (train.step.length) {
    Plotly.react(at("rate"), [
      line(train.step, train.rate, "learning rate", accent, 2, { hovertemplate: "%{y:.2e}" }),
      line(train.step, train.norm, "gradient norm", colour("--gt-quiet"), 1, { yaxis: "y2", opacity: 0.8 }),
    ], layout({ xaxis: { title: { text: "step" }, rangemode: "tozero" }, yaxis: { exponentformat: "e", rangemode: "tozero" },
      margin: { l: 44, r: 44, t: 6, b: 34 },
      yaxis2: { overlaying: "y", side: "right", showgrid: false, zeroline: false, rangemode: "tozero" } }), options);
  }
  drawMeasures(Plotly, options);
  if (hardware.time.length) {
    const when = hardware.time.map((t) => new Date(t * 1000));
    const gpu = hardware.gpu.some((v) => v !== null) ? [line(when, hardware.gpu, "GPU", warm, 2)] : [];
    Plotly.react(at("hardware"), [
      line(when, hardware.cpu, "CPU", accent, 2, { fill: "tozeroy", fillcolor: colour("--gt-wash") }),
      line(when, hardware.memory, "memory", colour("--gt-quiet"), 2), ...gpu,
    ], layout({ yaxis: { range: [0, 102], ticksuffix: " %" }, xaxis: { type: "date", nticks: 4, tickangle: 0, tickformat: "%H:%M:%S" } }), options);
  }
}

function loadPlotly() {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  return new Promise((done) => {
    const script = document.createElement("script");
    script.src = "PLOTLY_URL"; // set by watch.py
    script.onload = () => done(window.Plotly);
    script.onerror = () => { plotly = null; done(null); };
    document.head.append(script);
  });
}

// ---- the loop ----------------------------------------------------------------------------------------------------
function take(answer) {
  if (answer.unknown) { showEmpty(answer.unknown); return; }
  element.querySelector(".gt-watch").classList.remove("gt-none");
  if (answer.same) { clock = clock && { ...clock, at: performance.now(), elapsed: answer.elapsed_seconds }; return; }
  if (answer.reset) forget();
  for (const [name, store, keys] of [["train", train, ["step", "loss", "rate", "norm"]],
    ["evals", evals, ["step", "loss"]], ["hardware", hardware, ["time", "cpu", "memory", "gpu"]]]) {
    const part = answer[name];
    for (const key of keys) store[key].push(...part[key]);
    cursor[name] = part.to;
  }
  showHead(answer.head);
  showCards(answer.cards);
  showNotice(answer.notice);
  showActions(answer.actions);
  showHardware(answer.bars);
  showReport(answer.report, answer.samples);
  showMeasures(answer.measures);
  showLog(answer.log);
  cursor.attempt = answer.attempt;
  cursor.version = answer.version;
  draw();
}

function showHardware(bars) {
  at("gpu-key").hidden = !bars.some((bar) => bar.label.startsWith("GPU"));
  at("bars").replaceChildren(...bars.map((bar) => {
    const row = make("div", "gt-bar"), track = make("div", "gt-track"), fill = make("div");
    fill.style.width = `${Math.min(100, bar.percent).toFixed(0)}%`;
    track.append(fill);
    row.append(make("span", "", bar.label), track, make("b", "", bar.text));
    return row;
  }));
}

function showEmpty(text) {
  element.querySelector(".gt-watch").classList.add("gt-none");
  at("none-text").textContent = text;
}

async function poll() {
  if (run !== props.run) { run = props.run; forget(); draw(); }
  if (!run) { showEmpty("No run is chosen. Set one up, or pick one above."); return 1000; }
  const asked = run;
  const answer = await server.poll({ run, ...cursor });
  if (asked !== props.run) return 0;
  take(answer);
  return answer.live === false ? 4000 : 1000;
}

async function loop() {
  while (element.isConnected) {
    let pause = 1000;
    if (!document.hidden && element.offsetParent !== null) {
      try {
        pause = await poll();
        misses = 0;
      } catch (error) {
        misses += 1;
      }
      at("offline").hidden = misses < 2;
    }
    for (let waited = 0; waited < pause && element.isConnected && run === props.run; waited += 200) await sleep(200);
  }
}

forget();
for (const name of ["smoothing", "logscale"]) at(name).addEventListener("input", draw);
at("unzoom").addEventListener("click", () => window.Plotly && at("loss").data &&
  window.Plotly.relayout(at("loss"), { "xaxis.autorange": true, "yaxis.autorange": true }));
at("errors").addEventListener("change", () => at("log").classList.toggle("gt-only-bad", at("errors").checked));
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
setInterval(() => element.isConnected && tick(), 1000);
loop();
