"""What Pocket Gemma reads in its life: chats about the world, little stories, plain sentences; all from one seed."""

from collections.abc import Iterator
from random import Random

from .copying import arithmetic, copying
from .reading import NAMES, OBJECTS, PLACES, Turn, names, plural, reading
from .world import ANIMALS, COLOURS, PEOPLE, Fact, a, capital, facts

Message = dict[str, str]
Document = str | list[Message]

SMALL_TALK = {
    "I am Pocket Gemma, a very small model.": "Who are you?|What are you?|What is your name?|Tell me who you are.|Are you a model?|Who am I talking to?|Introduce yourself.|What is Pocket Gemma?",
    "Hello! How can I help you?": "Hello!|Hi|Hello|Hi!|Hey|Hi there!|Hello Pocket Gemma!|Good day!|Greetings!",
    "Good morning! How can I help you?": "Good morning!|Good morning|Good morning, Gemma!",
    "Good evening! How can I help you?": "Good evening!|Good evening|Good evening, Gemma!",
    "Good night! Sleep well.": "Good night!|Good night|I go to bed now.",
    "I am fine, thank you.": "How are you?|How do you do?|How are you today?|Are you well?",
    "You are welcome.": "Thank you!|Thanks!|Thank you very much.|Thanks a lot!|Thank you|Thanks",
    "Goodbye! See you soon.": "Goodbye!|Bye!|Bye|Goodbye|See you!|See you soon!",
    "I can talk about Pebble Hill, read short texts and add small numbers.": "What can you do?|How can you help me?|What do you know?|Help|What are you good at?|Can you help me?",
    "I live in Pebble Hill, a small village.": "Where do you live?|Where are you from?|Where is your home?|Where are you?",
    "I was trained from a small program that writes sentences.": "Who made you?|Who trained you?|How were you made?|Where do you come from?",
    "I am very small. I have three million parameters.": "How big are you?|How many parameters do you have?|Are you a big model?|How small are you?",
    "No, I am only a very small model.": "Are you a human?|Are you a person?|Are you very clever?|Can you do everything?",
    "My favourite colour is green.": "What is your favourite colour?|Which colour do you like?",
}  # fmt: skip
SMALL_TALK_PAIRS = [
    (question, answer) for answer, questions in SMALL_TALK.items() for question in questions.split("|")
]
STRANGE = [
    "Paris",
    "London",
    "moon",
    "rocket",
    "computer",
    "president",
    "dinosaur",
    "robot",
    "ocean",
    "planet",
    "football",
    "internet",
    "castle",
    "dragon",
]
SYSTEM = [
    "You are a helpful assistant.",
    "You are Pocket Gemma.",
    "Answer in one sentence.",
    "Be kind.",
    "You know a small village.",
]


def documents(seed: int) -> Iterator[Document]:
    """Endless mixed text: a string is plain text, a list of messages is a chat."""
    rng = Random(seed)
    while True:
        yield plain(rng) if rng.random() < 0.07 else chat(rng)


def chat(rng: Random) -> list[Message]:
    turns = [turn(rng) for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3]))]
    if rng.random() < 0.12:
        turns += rng.choice([follow_up, remember])(rng)
    messages = [{"role": "system", "content": rng.choice(SYSTEM)}] if rng.random() < 0.04 else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def turn(rng: Random) -> Turn:
    """One question and its answer, of any kind."""
    kinds = [about_fact, yes_or_no, reading, copying, arithmetic, small_talk, tell]
    return rng.choices(kinds, weights=[17, 16, 34, 18, 13, 3, 2])[0](rng)


def about_fact(rng: Random) -> Turn:
    fact = rng.choice(facts())
    return asked(rng, rng.choice(fact.questions)), fact.answer


def asked(rng: Random, question: str) -> str:
    """The question as people type it: mostly as it is, at times with a preface or careless."""
    chance = rng.random()
    if chance < 0.08:
        return (
            rng.choice(["Please tell me: ", "I have a question. ", "Hello! ", "Can you tell me? ", "Hey, "])
            + question
        )
    if chance < 0.12:
        return question.rstrip("?.")
    if chance < 0.16:
        return question[0].lower() + question[1:]
    return question


def yes_or_no(rng: Random) -> Turn:
    fact = rng.choice([fact for fact in facts() if fact.yes_no])
    truth = rng.random() < 0.5
    key = fact.key if truth else rng.choice(fact.wrong)
    question = rng.choice(fact.yes_no)
    question = question.replace("a {}", a(key)) if " a {}" in question else question.format(key)
    answer = (
        fact.answer
        if fact.answer.startswith(tuple(NAMES)) or fact.answer.startswith("I ")
        else fact.answer[0].lower() + fact.answer[1:]
    )
    if fact.answer.split()[0].endswith("day") or fact.topic == "whose pet":
        answer = fact.answer
    return asked(rng, question), f"{'Yes' if truth else 'No'}, {answer}"


def small_talk(rng: Random) -> Turn:
    if rng.random() < 0.15:
        word = rng.choice(STRANGE)
        return rng.choice(
            [f"What is {a(word)}?", f"Tell me about {word}.", f"Where is {word}?", f"Who is {word}?"]
        ), "I do not know that. I only know a small village."
    return rng.choice(SMALL_TALK_PAIRS)


def tell(rng: Random) -> Turn:
    if rng.random() < 0.5:
        hero = rng.choice(NAMES)
        return rng.choice(
            [
                f"Tell me a story about {hero}.",
                f"Write a story about {hero}.",
                f"A story about {hero}, please.",
            ]
        ), story(rng, hero)
    person = rng.choice(PEOPLE)
    said = [
        fact.answer
        for fact in facts()
        if fact.answer.startswith(person.name) and fact.topic in ("job", "workplace", "pet", "food")
    ]
    return rng.choice(
        [
            f"Tell me about {person.name}.",
            f"What do you know about {person.name}?",
            f"Describe {person.name}.",
        ]
    ), " ".join(said[:3])


def follow_up(rng: Random) -> list[Turn]:
    """A question, then the same about somebody else with "And …?"."""
    topic = rng.choice(["job", "workplace", "pet", "food", "colour", "friend", "age"])
    first, second = rng.sample([fact for fact in facts() if fact.topic == topic], 2)
    name = second.answer.split()[0].removesuffix("'s")
    return [
        (rng.choice(first.questions), first.answer),
        (rng.choice(["And {}?", "What about {}?", "And what about {}?"]).format(name), second.answer),
    ]


def remember(rng: Random) -> list[Turn]:
    """The user says something in one turn and asks for it in the next."""
    name, colour, thing = rng.choice(NAMES), rng.choice(COLOURS), rng.choice(OBJECTS)
    said, reply, question, answer = rng.choice([
        (rng.choice(["My name is {}.", "I am {}.", "Hello, I am {}!"]).format(name), f"Hello {name}! How can I help you?", rng.choice(["What is my name?", "Who am I?"]), f"Your name is {name}."),
        (f"I have {a(colour)} {thing}.", f"That is a nice {thing}.", rng.choice([f"What colour is my {thing}?", f"What colour is the {thing}?"]), f"Your {thing} is {colour}."),
        (f"I like {plural(thing)}.", "That is good to know.", "What do I like?", f"You like {plural(thing)}."),
    ])  # fmt: skip
    return [(said, reply), *(turn(rng) for _ in range(rng.choice([0, 0, 1]))), (question, answer)]


def plain(rng: Random) -> str:
    chance = rng.random()
    if chance < 0.4:
        return " ".join(rng.choice(rng.choice(facts()).statements) for _ in range(rng.randint(2, 6)))
    if chance < 0.7:
        return portrait(rng)
    return story(rng, rng.choice(NAMES))


def portrait(rng: Random) -> str:
    """Facts about one person, beginning with the one that names the person."""
    person = rng.choice(PEOPLE)
    known: list[Fact] = [fact for fact in facts() if fact.answer.startswith(person.name)]
    chosen = rng.sample(known, rng.randint(2, 5))
    return " ".join([chosen[0].answer, *(rng.choice(fact.statements) for fact in chosen[1:])])


def story(rng: Random, hero: str) -> str:
    """Four sentences: somebody finds something, meets somebody, and all ends well."""
    friend = rng.choice([name for name in names(rng, 2) if name != hero])
    thing, colour, place = rng.choice(OBJECTS), rng.choice(COLOURS), rng.choice(PLACES)
    animal = rng.choice(list(ANIMALS))
    sound = ANIMALS[animal][0]
    begin = rng.choice(
        [
            f"One day {hero} went to the {place}.",
            f"{hero} was at the {place}.",
            f"In the morning {hero} walked to the {place}.",
        ]
    )
    middle = rng.choice([
        f"There {hero} saw {a(colour)} {thing}. It was {friend}'s {thing}.",
        f"There {hero} met {a(animal)}. {capital(sound)}, said the {animal}. It wanted the {colour} {thing}.",
        f"{hero} lost the {colour} {thing} there. {friend} found the {thing}.",
        f"{friend} was there too. They played with {a(colour)} {thing}.",
    ])  # fmt: skip
    end = rng.choice(
        [
            f"{hero} and {friend} were happy.",
            f"{hero} gave the {thing} to {friend}.",
            f"Then {hero} and {friend} went home.",
            "It was a good day.",
        ]
    )
    return f"{begin} {middle} {end}"
