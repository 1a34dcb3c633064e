"""The words of the built-in world: tables that `world` draws from.

Only the `ood` split uses the held-out lists. In a template, {a} is an attribute, {v} its value, {n} a name or number.
"""

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
TENS = "ten twenty thirty forty fifty sixty seventy eighty ninety".split()
NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Karen Leo Maria Nina Oscar Paula Quinn Rosa Simon".split()
)
NAMES += "Tara Victor Wendy Xavier Yara Zoe Adam Bella Carl Dora Eric".split()
PLACES = "library park school harbour museum bakery garden station church castle theatre stadium farm hotel".split()
PLACES += "beach market bridge factory tower mill".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
FOODS = "soup bread salad pizza curry pasta cake rice fish cheese stew pancakes dumplings fruit".split()
ATTRIBUTES = {  # genre -> attribute -> its values
    "event": {
        "day": DAYS,
        "month": MONTHS,
        "place": PLACES,
        "host": NAMES,
        "price": NUMBERS[1:],
        "meal": FOODS,
        "music": "jazz rock opera folk piano violin drums choir guitar disco".split(),
        "theme": "history science pirates space nature poetry chess robots travel fashion films trees".split(),
    },
    "product": {
        "colour": "red blue green yellow black white brown orange purple grey pink silver golden".split(),
        "material": "wood steel glass cotton leather paper clay stone wool plastic copper bamboo linen".split(),
        "size": "tiny small medium large huge narrow wide tall short flat".split(),
        "price": NUMBERS[1:],
        "maker": NAMES,
        "origin": "France Japan Brazil Kenya Norway Canada India Spain Poland Egypt Mexico Vietnam Greece Chile".split(),
        "weight": TENS,
        "store": PLACES,
    },
    "trip": {
        "start": PLACES,
        "guide": NAMES,
        "transport": "bus train ferry bicycle tram taxi van boat horse foot".split(),
        "weather": "sunny rainy windy cloudy snowy foggy warm cold stormy mild".split(),
        "gear": "boots hat coat map rope lamp tent gloves camera compass umbrella whistle".split(),
        "day": DAYS,
        "length": TENS,
        "meal": FOODS,
    },
}
NOUN = {"event": "notice", "product": "listing", "trip": "plan"}
TOPICS = {  # genre -> (in-domain, held out)
    "event": (
        "picnic concert workshop dinner wedding lecture festival meeting party parade",
        "auction reunion seminar",
    ),
    "product": ("chair table kettle bicycle jacket basket clock mirror blanket shelf", "drum ladder purse"),
    "trip": ("hike cruise safari pilgrimage expedition ride walk tour", "trek voyage"),
}
INSTRUCTIONS = [
    "Write a {noun} for the {topic}. Cover {points} in this order. {layout}",
    "Please draft a short {noun} about our {topic}. Mention {points}, in that order. {layout}",
    "I need a {noun} for a {topic}. It should state {points} one after the other. {layout}",
    "Compose a {noun} on the {topic}. Include {points} in the given order. {layout}",
]
INSTRUCTIONS_HELD_OUT = [
    "Our {topic} still needs a {noun}. Please state {points} in this order. {layout}",
    "Could you write about the {topic}? The {noun} should mention {points}, in the given order. {layout}",
]
LAYOUTS = ["Use a title, bullets and a signature, and write at most {n} lines."]
LAYOUTS += ["Layout: a title, bullets, a signature, at most {n} lines."]
GREETING = ["Hello everyone", "Dear friends", "Good morning all", "Hi there", "Welcome all"]
THANKS = ["Thank you for reading", "Many thanks for your time", "We are grateful for your interest", "Thanks a lot"]
REQUEST = ["Please tell your friends", "Kindly reply soon", "Please come early", "We kindly ask you to share this"]
RUDE = ["Do not be stupid", "Lazy people should go away", "Stop asking silly questions", "Nobody cares what you think"]
FILLER = ["It will be great", "We worked hard on this", "Many people liked it last year", "More news will follow"]
FILLER += ["There is something for all ages", "It is a fine choice", "You can ask us anything"]
VAGUE = ["The {a} will be announced later", "Ask us about the {a}"]
STATED = ["The {a} is {v}", "About the {a}: {v}", "For the {a} we chose {v}"]
SIGNATURES = ["Signed, {n}", "Yours, {n}", "From {n}"]

POSITIONS = ["first point", "second point", "third point", "fourth point"]
TONE = ["greeting", "thanks", "request", "respect"]
FORMAT = ["title", "bullets", "signature", "limit"]
LABELS = {"order": POSITIONS, "tone": TONE, "format": FORMAT}  # of accuracy and completeness: the instruction's points
CRITERIA = dict(
    completeness=["Completeness: does the response cover {checks}?", "Coverage: are {checks} given in the response?"],
    accuracy=["Accuracy: do {checks} agree with the reference?"],
    order=["Order: are {checks} in the requested place?", "Sequence: do {checks} follow the requested order?"],
    tone=["Tone: is the response polite, with {checks}?", "Politeness: does the response show {checks}?"],
    format=["Format: does the response keep {checks}?", "Layout: does the response respect {checks}?"],
)
CRITERIA["accuracy"] += ["Correctness: are {checks} the same as in the reference?"]
COMBINATIONS = [("completeness", "tone"), ("accuracy", "format"), ("order", "tone")]
COMBINATIONS += [("completeness", "format"), ("accuracy", "completeness"), ("order", "accuracy")]
COMBINATIONS_HELD_OUT = [("accuracy", "tone"), ("order", "format")]
KEY_CHECK_SHARE = 0.3
KEY_LEVELS = ["The {label}, the key check, fails", "Only the {label} passes", "The {label} and one other pass"]
KEY_LEVELS += ["The {label} and two others pass", "All pass"]

EVIDENCE = {  # a verdict with its evidence, as the careful annotators write it
    "given": "The {label} is given as {found}: pass.",
    "not given": "The {label} is not given: fail.",
    "accuracy": "The {label} should be {wanted} and the response says {found}: {verdict}.",
    "order": "The {label} should be the {wanted} and it is the {found}: {verdict}.",
    "limit": "The limit is {wanted} lines and there are {found}: {verdict}.",
    "present": "We see the {label}: pass.",
    "not present": "We miss the {label}: fail.",
    "conclusion": "So {n} of four pass",
}
