"""Short texts with a question whose answer stands in them.

They teach the model to use its context, which is what fine-tuning then builds on. Every story takes a
`random.Random` and returns the text and a list of (question, answer).
"""
# ruff: noqa: SIM905 (a list of words reads better in one string)

from random import Random

from .world import COLOURS, PEOPLE, a, capital

Turn = tuple[str, str]

NAMES = [person.name for person in PEOPLE] + (
    "Alice Amir Bella Carl Daisy David Emma Eric Fay Felix Grace Gus Hana Henry Iris Ivan Jack Jane Kate Karl "
    "Lena Luis Maya Mark Nina Noah Olga Omar Pia Peter Ruby Rob Sara Simon Tara Tim Uma Victor Wendy Zoe"
).split()
OBJECTS = (
    "apple ball banana book bottle box button candle chair coat cup flower hat kite lamp lemon letter onion pear "
    "pen pencil plate plum potato ribbon ring rose scarf shell shirt sock spoon stone table ticket tomato towel toy"
).split()
ORDERABLE = (
    "coffee tea juice water milk soup salad sandwich pizza burger cake cookie muffin pancake pie omelette waffle "
    "lemonade pasta bagel"
).split()
PLACES = (
    "market park shop school garden library station beach farm harbour kitchen museum bakery river hill bridge "
    "theatre forest inn garage"
).split()
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
TIMES = ["today", "on Monday", "on Friday", "on Sunday", "in the morning", "in the evening", "at noon"]


def plural(noun: str) -> str:
    if noun in ("water", "milk", "pasta", "lemonade"):
        return {"water": "waters", "milk": "milks", "pasta": "pastas", "lemonade": "lemonades"}[noun]
    if noun.endswith(("tomato", "potato", "sandwich", "box")):
        return noun + "es"
    return noun + "s"


def counted(number: int, noun: str, words: bool = False) -> str:
    """3, apple -> "3 apples"; with `words`: "three apples"."""
    amount = NUMBER_WORDS[number] if words else str(number)
    return f"{amount} {noun if number == 1 else plural(noun)}"


def reading(rng: Random) -> Turn:
    """A sentence or two, and a question about it."""
    story, pairs = rng.choice(STORIES)(rng)
    question, answer = rng.choice(pairs)
    return rng.choice(
        [
            "{0} {1}",
            "{0}\n{1}",
            "Read this: {0}\n{1}",
            "{0}\n\nQuestion: {1}",
            "{1}\n{0}",
            "Text: {0}\nQuestion: {1}",
        ]
    ).format(story, question), answer


def names(rng: Random, count: int) -> list[str]:
    """Different names; one in eight is invented, so that copying does not stop at known words."""
    return [invented(rng) if rng.random() < 0.12 else name for name in rng.sample(NAMES, count)]


def invented(rng: Random) -> str:
    """A name of two or three syllables that hardly comes again."""
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice([2, 2, 3]))]
    return "".join(syllables).capitalize()


def _buys(rng: Random):
    name, thing, place, colour = (
        names(rng, 1)[0],
        rng.choice(OBJECTS),
        rng.choice(PLACES),
        rng.choice(COLOURS),
    )
    elsewhere = rng.choice([other for other in PLACES if other != place])
    number = rng.randint(2, 20)
    verb = rng.choice(["buy", "find", "see", "sell", "count", "want"])
    things, time = f"{number} {colour} {plural(thing)}", rng.choice(TIMES)
    story = rng.choice([
        f"{name} {verb}s {things} at the {place}.", f"At the {place}, {name} {verb}s {things}.",
        f"{capital(time)}, {name} {verb}s {things} at the {place}.", f"{name} goes to the {place} and {verb}s {things} {time}.",
        f"{things} are at the {place}, and {name} {verb}s them.",
    ])  # fmt: skip
    return story, [
        (rng.choice([f"Who {verb}s the {plural(thing)}?", f"Who {verb}s something?"]), f"{name} {verb}s the {plural(thing)}."),
        (f"What does {name} {verb}?", f"{name} {verb}s {things}."),
        (f"How many {plural(thing)} does {name} {verb}?", f"{name} {verb}s {counted(number, thing)}."),
        (rng.choice([f"What colour are the {plural(thing)}?", "Which colour do they have?"]), f"The {plural(thing)} are {colour}."),
        (rng.choice([f"Where does {name} {verb} them?", f"Where is {name}?"]), f"{name} is at the {place}."),
        (rng.choice(["Name the person.", "Give me only the name.", "Which name is in the text?"]), name),
        (rng.choice(["Name the colour.", "Give me only the colour.", "Which colour is in the text?"]), colour),
        (rng.choice(["Name the number.", "Give me only the number.", "Which number is in the text?"]), str(number)),
        (rng.choice(["Name the place.", "Give me only the place.", "Which place is in the text?"]), place),
        (rng.choice(["Name the thing.", "Give me only the thing.", "Which things are in the text?"]), plural(thing)),
        ("List the name, the number and the colour.", f"{name}, {number}, {colour}"),
        ("List the thing, the colour and the place.", f"{plural(thing)}, {colour}, {place}"),
        ("List the name, the thing and the number.", f"{name}, {plural(thing)}, {number}"),
        (f"Is {name} at the {place}?", f"Yes, {name} is at the {place}."),
        (f"Is {name} at the {elsewhere}?", f"No, {name} is at the {place}."),
    ]  # fmt: skip


def _two_people(rng: Random):
    (x, y), (s, t) = names(rng, 2), rng.sample(OBJECTS, 2)
    c, d = rng.sample(COLOURS, 2)
    story = rng.choice([
        f"{x} has {a(c)} {s}. {y} has {a(d)} {t}.", f"{x} has {a(c)} {s}, but {y} has {a(d)} {t}.",
        f"{y} has {a(d)} {t}. {x} has {a(c)} {s}.", f"{x} has {a(c)} {s} and {y} has {a(d)} {t}.",
    ])  # fmt: skip
    return story, [
        (f"Who has the {s}?", f"{x} has the {s}."), (f"Who has the {t}?", f"{y} has the {t}."),
        (f"What does {x} have?", f"{x} has {a(c)} {s}."), (f"What does {y} have?", f"{y} has {a(d)} {t}."),
        (f"What colour is the {s}?", f"The {s} is {c}."), (f"What colour is the {t}?", f"The {t} is {d}."),
        (f"Does {x} have the {s}?", f"Yes, {x} has the {s}."), (f"Does {x} have the {t}?", f"No, {y} has the {t}."),
        (f"Whose {s} is it?", f"It is {x}'s {s}."),
    ]  # fmt: skip


def _likes(rng: Random):
    (x, y), (s, t) = names(rng, 2), rng.sample(ORDERABLE, 2)
    verb = (
        rng.choice(["like", "want", "drink", "make"])
        if s in ("tea", "milk")
        else rng.choice(["like", "want", "make"])
    )
    story = f"{x} {verb}s {s}{rng.choice([', but', ' and', '.'])} {y} {verb}s {t}."
    return story, [
        (f"What does {x} {verb}?", f"{x} {verb}s {s}."), (f"What does {y} {verb}?", f"{y} {verb}s {t}."),
        (f"Who {verb}s {s}?", f"{x} {verb}s {s}."), (f"Who {verb}s {t}?", f"{y} {verb}s {t}."),
        (f"Does {x} {verb} {t}?", f"No, {x} {verb}s {s}."), (f"Does {y} {verb} {t}?", f"Yes, {y} {verb}s {t}."),
    ]  # fmt: skip


def _meets(rng: Random):
    (x, y), place, time = names(rng, 2), rng.choice(PLACES), rng.choice(TIMES)
    story = rng.choice([
        f"{x} meets {y} at the {place} {time}.", f"{capital(time)}, {x} meets {y} at the {place}.",
        f"{x} goes to the {place} {time} and meets {y}.",
    ])  # fmt: skip
    return story, [
        (f"Who does {x} meet?", f"{x} meets {y}."), (f"Who meets {y}?", f"{x} meets {y}."),
        ("Where do they meet?", f"They meet at the {place}."), ("When do they meet?", f"They meet {time}."),
        ("Who is in the text?", f"{x} and {y} are in the text."), ("Give me the two names.", f"{x}, {y}"),
    ]  # fmt: skip


def _introduction(rng: Random):
    name, age, colour, pet = (
        names(rng, 1)[0],
        rng.randint(5, 80),
        rng.choice(COLOURS),
        rng.choice(PEOPLE).pet,
    )
    story = rng.choice([
        f"My name is {name} and I am {age} years old. I have {a(colour)} {pet}.",
        f"Hello, I am {name}. I am {age} and I have {a(colour)} {pet}.", f"I am {name}, I am {age} years old and my {pet} is {colour}.",
    ])  # fmt: skip
    return story, [
        ("What is my name?", f"Your name is {name}."), ("How old am I?", f"You are {age} years old."),
        ("What pet do I have?", f"You have {a(colour)} {pet}."), (f"What colour is my {pet}?", f"Your {pet} is {colour}."),
        ("Who am I?", f"You are {name}."),
    ]  # fmt: skip


def _order(rng: Random):
    (s, t), (i, j), table = (
        rng.sample(ORDERABLE, 2),
        (rng.randint(1, 6), rng.randint(1, 6)),
        rng.randint(1, 20),
    )
    wish = f"{counted(i, s, words=True)} and {counted(j, t, words=True)}"
    please = rng.choice(
        ["I would like {}, please.", "Can we have {}?", "We want {}.", "Please bring {}.", "{}, please."]
    ).format(wish)
    story = capital(
        rng.choice(
            [
                f"{please} We sit at table {table}.",
                f"Table {table}: {please}",
                please + f" This is table {table}.",
            ]
        )
    )
    return story, [
        ("What do the guests want?", f"The guests want {wish}."),
        (f"How many {plural(s)} do they want?", f"They want {counted(i, s)}."), (f"How many {plural(t)} do they want?", f"They want {counted(j, t)}."),
        ("Which table is it?", f"It is table {table}."), ("Give me the number of the table.", str(table)),
        ("Name the two things.", f"{s}, {t}"), ("Write it with numbers.", f"{counted(i, s)}, {counted(j, t)}"),
        ("Name the first thing.", s), ("Name the second thing.", t),
    ]  # fmt: skip


def _sum_story(rng: Random):
    name, thing = names(rng, 1)[0], rng.choice(OBJECTS)
    x = rng.randint(1, 19)
    y = rng.randint(1, 20 - x)
    how_many = [f"How many {plural(thing)} does {name} have now?", "How many are there now?"]
    if rng.random() < 0.5:
        story = f"{name} has {counted(x, thing)} and gets {y} more."
        return story, [(question, f"{name} has {counted(x + y, thing)} now.") for question in how_many]
    story = f"{name} has {counted(x + y, thing)} and gives away {y}."
    return story, [(question, f"{name} has {counted(x, thing)} now.") for question in how_many]


PAST = {
    "buy": "bought", "eat": "ate", "see": "saw", "find": "found", "make": "made", "lose": "lost", "take": "took",
    "bring": "brought", "sell": "sold", "get": "got", "draw": "drew", "give away": "gave away",
}  # fmt: skip


def _past(rng: Random):
    """Somebody, or the user, did something: "Bob ate 5 pizzas.", "I bought a blue scarf." """
    verb, thing, place = rng.choice(list(PAST)), rng.choice(OBJECTS + ORDERABLE), rng.choice(PLACES)
    number, colour, name = rng.randint(2, 20), rng.choice(COLOURS), names(rng, 1)[0]
    what = rng.choice(
        [f"{number} {plural(thing)}", a(thing), f"{a(colour)} {thing}", f"the {colour} {thing}"]
    )
    who, you, was = rng.choice([(name, name, "was"), (name, name, "was"), ("I", "You", "were")])
    where = rng.choice(["", f" at the {place}", f" in the {place}"])
    pairs = [(f"What did {who} {verb}?", f"{you} {PAST[verb]} {what}.")]
    if who == name:
        pairs.append((f"Who {PAST[verb]} something?", f"{name} {PAST[verb]} {what}."))
    if where:
        pairs.append((f"Where was {who}?", f"{you} {was}{where}."))
    if what[0].isdigit():
        pairs.append((f"How many {plural(thing)} did {who} {verb}?", f"{you} {PAST[verb]} {what}."))
    if colour in what:
        pairs.append((f"What colour is the {thing}?", f"The {thing} is {colour}."))
    return f"{who} {PAST[verb]} {what}{where}.", pairs


def _owned(rng: Random):
    """Something belongs to somebody: "My cat is called Bob.", "The new car of Peter is red." """
    name, called = names(rng, 2)
    colour, pet = rng.choice(COLOURS), rng.choice(PEOPLE).pet
    thing = rng.choice([*OBJECTS, "car", "house", "bike", "boat"])
    my, your = rng.choice([("my", "your"), (f"{name}'s", f"{name}'s")])
    if rng.random() < 0.5:
        story = rng.choice([f"{my} {pet} is called {called}.", f"the name of {my} {pet} is {called}."])
        answer = capital(f"{your} {pet} is called {called}.")
        return capital(story), [
            (f"What is {my} {pet} called?", answer), (f"What is the name of {my} {pet}?", answer),
            (f"Who is {called}?", f"{called} is {your} {pet}."),
        ]  # fmt: skip
    story = rng.choice(
        [
            f"{my} {thing} is {colour}.",
            f"{my} new {thing} is {colour}.",
            f"the {thing} of {name} is {colour}.",
        ]
    )
    asked = ["What colour is the {}?", "Which colour is the {}?", "Which colour does the {} have?"]
    return capital(story), [(question.format(thing), f"The {thing} is {colour}.") for question in asked]


STORIES = (
    [_buys] * 3
    + [_two_people] * 3
    + [_order] * 3
    + [_past] * 2
    + [_likes, _meets, _introduction, _sum_story, _owned]
)
