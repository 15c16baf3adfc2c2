"""The closed world of Pocket Gemma: a village, what is true in it, and the ways to say and to ask it.

Tables first, then `facts()`, which turns every line of the tables into `Fact`s. No randomness here.
"""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Fact:
    """One truth. `key` is the part of the answer that carries it; `wrong` are keys that would be false."""

    topic: str
    questions: tuple[str, ...]
    answer: str
    key: str
    statements: tuple[str, ...]
    yes_no: tuple[str, ...] = ()  # questions with a slot "{}" for the key or a wrong key
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str
    age: int
    job: str
    workplace: str
    pet: str
    pet_name: str
    pet_colour: str
    food: str
    colour: str
    friend: str


PEOPLE = [
    Person("Anna", "she", 34, "baker", "bakery", "cat", "Milo", "black", "cherry cake", "red", "Tom"),
    Person("Tom", "he", 41, "farmer", "farm", "dog", "Rex", "brown", "potato soup", "green", "Anna"),
    Person("Lily", "she", 29, "teacher", "school", "rabbit", "Snowy", "white", "pancakes", "yellow", "Ben"),
    Person("Ben", "he", 52, "doctor", "clinic", "parrot", "Kiki", "green", "rice", "blue", "Lily"),
    Person("Rosa", "she", 63, "mayor", "town hall", "horse", "Star", "grey", "lemon pie", "purple", "Max"),
    Person("Max", "he", 25, "fisher", "lake", "duck", "Waddle", "yellow", "fish", "orange", "Rosa"),
    Person("Clara", "she", 47, "librarian", "library", "owl", "Minerva", "brown", "toast", "brown", "Otto"),
    Person("Otto", "he", 38, "cook", "inn", "pig", "Truffle", "pink", "mushroom stew", "white", "Clara"),
    Person("Mia", "she", 22, "painter", "studio", "mouse", "Dot", "grey", "ice cream", "pink", "Leo"),
    Person("Leo", "he", 31, "musician", "theatre", "bird", "Tweet", "blue", "noodles", "black", "Mia"),
    Person("Nora", "she", 56, "gardener", "garden", "hen", "Henny", "red", "tomato salad", "green", "Paul"),
    Person("Paul", "he", 44, "carpenter", "workshop", "goat", "Billy", "white", "cheese", "blue", "Nora"),
    Person("Ella", "she", 36, "pilot", "airfield", "frog", "Hop", "green", "plums", "grey", "Hugo"),
    Person(
        "Hugo", "he", 67, "shopkeeper", "shop", "turtle", "Slowpoke", "green", "honey bread", "red", "Ella"
    ),
    Person("Ida", "she", 27, "nurse", "hospital", "sheep", "Woolly", "white", "apple pie", "yellow", "Sam"),
    Person("Sam", "he", 33, "mechanic", "garage", "fox", "Rusty", "orange", "hot soup", "purple", "Ida"),
]
THINGS = {
    "clock": "in the tower",
    "piano": "in the school",
    "globe": "in the library",
    "boat": "on the lake",
    "bench": "under the oak tree",
    "ladder": "behind the barn",
    "well": "in the market square",
    "bell": "in the church",
    "bridge": "over the river",
    "map": "on the wall of the station",
    "lantern": "by the gate",
    "drum": "in the cellar",
    "telescope": "on the hill",
    "wagon": "in the barn",
    "statue": "in the park",
    "mirror": "in the theatre",
}
ANIMALS = {  # sound, food, young, number of legs, home
    "cat": ("meow", "fish", "kitten", 4, "house"),
    "dog": ("woof", "meat", "puppy", 4, "kennel"),
    "cow": ("moo", "grass", "calf", 4, "field"),
    "horse": ("neigh", "hay", "foal", 4, "stable"),
    "sheep": ("baa", "grass", "lamb", 4, "meadow"),
    "pig": ("oink", "corn", "piglet", 4, "sty"),
    "duck": ("quack", "weeds", "duckling", 2, "pond"),
    "hen": ("cluck", "grain", "chick", 2, "coop"),
    "goat": ("bleat", "leaves", "kid", 4, "shed"),
    "frog": ("croak", "flies", "tadpole", 4, "swamp"),
    "bee": ("buzz", "nectar", "larva", 6, "hive"),
    "owl": ("hoot", "mice", "owlet", 2, "hollow tree"),
}
COLOURS_OF = {
    "a banana": "yellow",
    "a tomato": "red",
    "grass": "green",
    "the sky": "blue",
    "snow": "white",
    "coal": "black",
    "a carrot": "orange",
    "a plum": "purple",
    "chocolate": "brown",
    "a lemon": "yellow",
    "a cherry": "red",
    "a leaf": "green",
    "the sea": "blue",
    "milk": "white",
    "an elephant": "grey",
    "a flamingo": "pink",
}
OPPOSITES = [
    ("big", "small"),
    ("hot", "cold"),
    ("old", "new"),
    ("fast", "slow"),
    ("happy", "sad"),
    ("long", "short"),
    ("light", "dark"),
    ("wet", "dry"),
    ("full", "empty"),
    ("open", "closed"),
    ("loud", "quiet"),
    ("clean", "dirty"),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SEASONS = {
    "spring": "the flowers bloom",
    "summer": "it is hot",
    "autumn": "the leaves fall",
    "winter": "it snows",
}
COLOURS = ["red", "green", "yellow", "blue", "purple", "orange", "brown", "white", "pink", "black", "grey"]
VILLAGE = [  # key, answer, questions
    ("Pebble Hill", "The village is called Pebble Hill.", ("What is the village called?", "What is the name of the village?", "Where do all these people live?")),
    ("Lark", "The river is called the Lark.", ("What is the river called?", "What is the name of the river?", "Which river flows by the village?")),
    ("Saturday", "The market is open on Saturday.", ("When is the market open?", "On which day is the market?", "When can I go to the market?")),
    ("sixteen", "Sixteen people live in Pebble Hill.", ("How many people live in Pebble Hill?", "How many people are in the village?", "How big is the village?")),
    ("King Oak", "The oldest tree is called King Oak.", ("What is the oldest tree called?", "What is the name of the oldest tree?", "How do people call the old oak tree?")),
    ("noon", "The bell rings at noon.", ("When does the bell ring?", "At what time does the bell ring?", "When can I hear the bell?")),
    ("eight", "The school starts at eight.", ("When does the school start?", "At what time does school begin?", "When do the lessons begin?")),
    ("green", "The village flag is green and white.", ("What colour is the village flag?", "What does the flag look like?", "Which colours does the flag have?")),
    ("train", "You can get to Pebble Hill by train.", ("How can I get to Pebble Hill?", "How do I travel to the village?", "How do people come to Pebble Hill?")),
    ("June", "The summer party is in June.", ("When is the summer party?", "In which month is the summer party?", "When do the people have a party?")),
]  # fmt: skip


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def others(values, key: str) -> tuple[str, ...]:
    return tuple(sorted({str(value) for value in values} - {key}))


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact of the world, in a fixed order."""
    made = [fact for person in PEOPLE for fact in _about_person(person)]
    made += [fact for thing, place in THINGS.items() for fact in _about_thing(thing, place)]
    made += [fact for animal in ANIMALS for fact in _about_animal(animal)]
    made += [_colour(thing, colour) for thing, colour in COLOURS_OF.items()]
    made += [_opposite(x, y) for pair in OPPOSITES for x, y in (pair, pair[::-1])]
    made += [fact for day in range(7) for fact in _day(day)]
    made += [_season(season, sign) for season, sign in SEASONS.items()]
    made += [Fact("village", questions, answer, key, (answer,)) for key, answer, questions in VILLAGE]
    return tuple(made)


def _about_person(p: Person) -> list[Fact]:
    n, he = p.name, capital(p.pronoun)
    his = {"she": "her", "he": "his"}[p.pronoun]
    pet = f"{p.pet_colour} {p.pet}"
    rows = [
        ("job", f"What is {n}'s job?|What does {n} do?|What work does {n} do?|Tell me the job of {n}.|What is the job of {n}?|Who is {n}?",
         f"{n} is {a(p.job)}.", p.job, f"{n} works as {a(p.job)}.|{he} is {a(p.job)}.", f"Is {n} a {{}}?", [q.job for q in PEOPLE]),
        ("workplace", f"Where does {n} work?|Where can I find {n} at work?|Where is {n} during the day?|In which place does {n} work?|What is the workplace of {n}?",
         f"{n} works at the {p.workplace}.", p.workplace, f"You can find {n} at the {p.workplace}.|{he} works at the {p.workplace} every day.", f"Does {n} work at the {{}}?", [q.workplace for q in PEOPLE]),
        ("pet", f"What pet does {n} have?|Which animal does {n} have?|Does {n} have a pet?|What animal lives with {n}?|Tell me about {n}'s pet.",
         f"{n} has {a(pet)}.", p.pet, f"{n} owns {a(pet)} called {p.pet_name}.|{he} has {a(p.pet)}.", f"Does {n} have a {{}}?", [q.pet for q in PEOPLE]),
        ("pet name", f"What is the name of {n}'s {p.pet}?|What is {n}'s {p.pet} called?|What is {n}'s pet called?|How does {n} call {his} pet?|What is the name of {n}'s pet?",
         f"{n}'s {p.pet} is called {p.pet_name}.", p.pet_name, f"The {p.pet} of {n} is called {p.pet_name}.|{p.pet_name} is the {p.pet} of {n}.", f"Is {n}'s {p.pet} called {{}}?", [q.pet_name for q in PEOPLE]),
        ("pet colour", f"What colour is {n}'s {p.pet}?|What colour is {n}'s pet?|Which colour does {n}'s {p.pet} have?|What is the colour of {p.pet_name} the {p.pet}?|What colour is {p.pet_name}?",
         f"{n}'s {p.pet} is {p.pet_colour}.", p.pet_colour, f"The {p.pet} of {n} is {p.pet_colour}.|{p.pet_name} is {a(pet)}.", f"Is {n}'s {p.pet} {{}}?", COLOURS),
        ("food", f"What does {n} like to eat?|What is {n}'s favourite food?|Which food does {n} like?|What food does {n} love?|What should I cook for {n}?",
         f"{n} likes {p.food}.", p.food, f"{n} loves to eat {p.food}.|{he} likes {p.food}.|The favourite food of {n} is {p.food}.", f"Does {n} like {{}}?", [q.food for q in PEOPLE]),
        ("colour", f"What is {n}'s favourite colour?|Which colour does {n} like?|What colour does {n} love?|Which colour does {n} like best?|Tell me the favourite colour of {n}.",
         f"{n}'s favourite colour is {p.colour}.", p.colour, f"The favourite colour of {n} is {p.colour}.|{n} loves the colour {p.colour}.", f"Is {n}'s favourite colour {{}}?", COLOURS),
        ("friend", f"Who is {n}'s best friend?|Who is the best friend of {n}?|Who is {n}'s friend?|Who does {n} like to meet?|Does {n} have a friend?",
         f"{n}'s best friend is {p.friend}.", p.friend, f"{n} and {p.friend} are good friends.|{n} is a friend of {p.friend}.", f"Is {{}} {n}'s best friend?", [q.name for q in PEOPLE if q is not p]),
        ("age", f"How old is {n}?|What is {n}'s age?|What is the age of {n}?|Tell me how old {n} is.|Do you know how old {n} is?",
         f"{n} is {p.age} years old.", str(p.age), f"{he} is {p.age} years old.|{n} is {p.age}.", f"Is {n} {{}} years old?", [q.age for q in PEOPLE]),
        ("who job", f"Who is the {p.job}?|Who is the {p.job} of the village?|Who works as {a(p.job)}?|What is the name of the {p.job}?|Which person is {a(p.job)}?",
         f"{n} is the {p.job}.", n, f"The {p.job} is {n}.|The {p.job} of the village is {n}.", f"Is {{}} the {p.job}?", [q.name for q in PEOPLE]),
        ("who workplace", f"Who works at the {p.workplace}?|Who can I meet at the {p.workplace}?|Who is at the {p.workplace}?|Which person works at the {p.workplace}?",
         f"{n} works at the {p.workplace}.", n, f"At the {p.workplace} you can meet {n}.", f"Does {{}} work at the {p.workplace}?", [q.name for q in PEOPLE]),
        ("whose pet", f"Who has {a(p.pet)}?|Who has {a(pet)}?|Whose pet is {p.pet_name}?|Who owns {p.pet_name}?|Who is {p.pet_name}?",
         f"{p.pet_name} is {n}'s {p.pet}.", n, f"{p.pet_name} the {p.pet} lives with {n}.", f"Is {p.pet_name} {{}}'s {p.pet}?", [q.name for q in PEOPLE]),
        ("who food", f"Who likes {p.food}?|Who likes to eat {p.food}?|Who loves {p.food}?|Whose favourite food is {p.food}?",
         f"{n} likes {p.food}.", n, f"{capital(p.food)} makes {n} happy.", f"Does {{}} like {p.food}?", [q.name for q in PEOPLE]),
    ]  # fmt: skip
    return [_fact(*row) for row in rows]


def _fact(topic, questions, answer, key, statements, yes_no, values) -> Fact:
    asked = tuple(questions.split("|"))
    return Fact(topic, asked, answer, key, (answer, *statements.split("|")), (yes_no,), others(values, key))


def _about_thing(thing: str, place: str) -> list[Fact]:
    where = f"Where is the {thing}?|Where can I find the {thing}?|In which place is the {thing}?|Do you know where the {thing} is?|I am looking for the {thing}."
    what = f"What is {place}?|What can I see {place}?|What can I find {place}?|Which thing is {place}?"
    said = f"You can find the {thing} {place}.|{capital(place)} you can see the {thing}."
    answer = f"The {thing} is {place}."
    return [
        _fact("where", where, answer, place, said, f"Is the {thing} {{}}?", THINGS.values()),
        _fact("what", what, answer, thing, said, f"Is the {{}} {place}?", THINGS),
    ]


def _about_animal(animal: str) -> list[Fact]:
    sound, food, young, legs, home = ANIMALS[animal]
    column = list(zip(*ANIMALS.values(), strict=True))
    one = a(animal)
    rows = [
        ("sound", f"What does {one} say?|Which sound does {one} make?|What sound does the {animal} make?|How does {one} sound?",
         f"{capital(one)} says {sound}.", sound, f"The {animal} says {sound}.|{capital(sound)}, says the {animal}.", f"Does {one} say {{}}?", column[0]),
        ("eats", f"What does {one} eat?|What food does {one} eat?|What does the {animal} like to eat?|What can I feed to {one}?",
         f"{capital(one)} eats {food}.", food, f"The {animal} eats {food}.|{capital(one)} likes to eat {food}.", f"Does {one} eat {{}}?", column[1]),
        ("young", f"What is a young {animal} called?|What is a baby {animal} called?|What do you call a young {animal}?|What is the name for a small {animal}?",
         f"A young {animal} is called {a(young)}.", young, f"{capital(a(young))} is a young {animal}.", f"Is a young {animal} called a {{}}?", column[2]),
        ("legs", f"How many legs does {one} have?|How many legs has {one}?|What number of legs does {one} have?|Count the legs of {one}.",
         f"{capital(one)} has {legs} legs.", str(legs), f"The {animal} has {legs} legs.", f"Does {one} have {{}} legs?", (2, 4, 6, 8)),
        ("home", f"Where does {one} live?|What is the home of {one}?|Where can I find {one}?|Where does the {animal} sleep?",
         f"{capital(one)} lives in a {home}.", home, f"The {animal} lives in a {home}.", f"Does {one} live in a {{}}?", column[4]),
        ("whose young", f"What is {a(young)}?|Which animal is {a(young)}?|What animal has {a(young)}?",
         f"{capital(a(young))} is a young {animal}.", animal, f"A young {animal} is called {a(young)}.", f"Is {a(young)} a young {{}}?", ANIMALS),
    ]  # fmt: skip
    return [_fact(*row) for row in rows]


def _colour(thing: str, colour: str) -> Fact:
    asked = f"What colour is {thing}?|Which colour does {thing} have?|What is the colour of {thing}?|Tell me the colour of {thing}."
    said = f"The colour of {thing} is {colour}.|Do you see how {colour} {thing} is?"
    return _fact(
        "colour of", asked, f"{capital(thing)} is {colour}.", colour, said, f"Is {thing} {{}}?", COLOURS
    )


def _opposite(word: str, opposite: str) -> Fact:
    asked = f"What is the opposite of {word}?|Tell me the opposite of {word}.|Which word is the opposite of {word}?|What is not {word}?"
    answer = f"The opposite of {word} is {opposite}."
    words = [word for pair in OPPOSITES for word in pair if word != opposite]
    return _fact(
        "opposite",
        asked,
        answer,
        opposite,
        f"{capital(word)} is not {opposite}.",
        f"Is {{}} the opposite of {word}?",
        words,
    )


def _day(index: int) -> list[Fact]:
    day, after, before = DAYS[index], DAYS[(index + 1) % 7], DAYS[index - 1]
    ahead = f"What day comes after {day}?|Which day comes after {day}?|What is the day after {day}?|Today is {day}. What day is tomorrow?"
    back = f"What day comes before {day}?|Which day comes before {day}?|What is the day before {day}?|Today is {day}. What day was yesterday?"
    return [
        _fact("day after", ahead, f"{after} comes after {day}.", after, f"After {day} comes {after}.", f"Does {{}} come after {day}?", DAYS),
        _fact("day before", back, f"{before} comes before {day}.", before, f"Before {day} comes {before}.", f"Does {{}} come before {day}?", DAYS),
    ]  # fmt: skip


def _season(season: str, sign: str) -> Fact:
    asked = f"What happens in {season}?|What is it like in {season}?|Tell me about {season}.|How is {season}?"
    return Fact(
        "season",
        tuple(asked.split("|")),
        f"In {season} {sign}.",
        sign,
        (f"In {season} {sign}.", f"{capital(sign)} in {season}."),
    )
