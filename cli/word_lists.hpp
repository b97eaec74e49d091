// Our own words for line names ("brave-otter"): common, distinct, one to three tokens each.
#pragma once

#include <string_view>

namespace mikv::cli {

inline constexpr std::string_view kAdjectives[] = {
    "able",      "amber",    "ample",    "ancient",  "angular",   "arctic",   "ashen",   "autumn",   "awake",
    "azure",     "balmy",    "bashful",  "basic",    "bitter",    "blissful", "blunt",   "bold",     "bouncy",
    "brave",     "breezy",   "brief",    "bright",   "brisk",     "broad",    "bronze",  "bubbly",   "busy",
    "calm",      "candid",   "careful",  "cheery",   "chilly",    "civil",    "classic", "clever",   "cloudy",
    "coastal",   "cosmic",   "cozy",     "crimson",  "crisp",     "curious",  "curly",   "dapper",   "daring",
    "decent",    "deep",     "dense",    "dizzy",    "doubtful",  "drowsy",   "dusty",   "eager",    "early",
    "earnest",   "easy",     "elder",    "electric", "elegant",   "endless",  "exact",   "fabled",   "faint",
    "famous",    "fancy",    "fearless", "feisty",   "fertile",   "fickle",   "fierce",  "flaky",    "fleet",
    "floral",    "fluent",   "foggy",    "formal",   "fragile",   "frank",    "frosty",  "fuzzy",    "gentle",
    "giant",     "giddy",    "gilded",   "glad",     "gleaming",  "glossy",   "golden",  "graceful", "grand",
    "gritty",    "grumpy",   "handy",    "happy",    "hardy",     "hasty",    "hazy",    "hearty",   "hidden",
    "hollow",    "honest",   "humble",   "hungry",   "icy",       "idle",     "immense", "inland",   "ivory",
    "jagged",    "jolly",    "jovial",   "keen",     "kind",      "lanky",    "lavish",  "lazy",     "leafy",
    "lively",    "local",    "lofty",    "lonely",   "loud",      "loyal",    "lucid",   "lucky",    "lunar",
    "magic",     "mellow",   "merry",    "mighty",   "mild",      "misty",    "modest",  "moody",    "muddy",
    "mute",      "narrow",   "nimble",   "noble",    "nocturnal", "northern", "novel",   "odd",      "olive",
    "orderly",   "pale",     "patient",  "peaceful", "placid",    "plain",    "playful", "plucky",   "polar",
    "polite",    "proud",    "prudent",  "puzzled",  "quaint",    "quick",    "quiet",   "radiant",  "rapid",
    "rare",      "restless", "rustic",   "rusty",    "salty",     "scarlet",  "secret",  "serene",   "shady",
    "sharp",     "shiny",    "shy",      "silent",   "silky",     "silver",   "simple",  "sleepy",   "smoky",
    "snowy",     "solemn",   "solid",    "sparse",   "speedy",    "spicy",    "steady",  "stormy",   "subtle",
    "sunny",     "swift",    "tame",     "tangy",    "tender",    "thirsty",  "tidy",    "timid",    "tiny",
    "tranquil",  "twisted",  "uneven",   "upbeat",   "urban",     "vague",    "velvet",  "violet",   "vivid",
    "wandering", "warm",     "wary",     "western",  "wild",      "windy",    "wise",    "witty",    "wooden",
    "young",     "zesty"};

inline constexpr std::string_view kNouns[] = {
    "acorn",   "almond",   "anchor",  "antler",  "apple",   "apron",    "arrow",   "atlas",   "badger",  "bagel",
    "bamboo",  "banjo",    "barley",  "barn",    "basin",   "basket",   "beacon",  "beetle",  "bell",    "berry",
    "blanket", "boulder",  "bramble", "bridge",  "broom",   "bucket",   "buffalo", "button",  "cabin",   "cactus",
    "candle",  "canoe",    "canyon",  "carpet",  "carrot",  "castle",   "cedar",   "cello",   "chalk",   "cherry",
    "chimney", "cider",    "circle",  "clover",  "cobra",   "comet",    "compass", "copper",  "coral",   "cottage",
    "cricket", "crystal",  "cushion", "daisy",   "delta",   "desert",   "dolphin", "donkey",  "dragon",  "drum",
    "eagle",   "ember",    "engine",  "falcon",  "feather", "fern",     "ferry",   "fiddle",  "finch",   "flute",
    "forest",  "fountain", "fox",     "galaxy",  "garden",  "garnet",   "gecko",   "ginger",  "glacier", "goblet",
    "gopher",  "granite",  "grove",   "hammer",  "harbor",  "harp",     "hatchet", "hazel",   "hedge",   "helmet",
    "heron",   "hill",     "hornet",  "island",  "ivy",     "jacket",   "jaguar",  "jasmine", "jungle",  "kettle",
    "kite",    "ladder",   "lagoon",  "lantern", "lark",    "lemon",    "lentil",  "lily",    "linen",   "lizard",
    "lobster", "locket",   "lotus",   "magnet",  "mango",   "maple",    "marble",  "marsh",   "meadow",  "melon",
    "meteor",  "mill",     "mirror",  "monkey",  "moose",   "mountain", "muffin",  "needle",  "nutmeg",  "oasis",
    "ocean",   "onion",    "orchard", "orchid",  "otter",   "owl",      "oyster",  "paddle",  "panda",   "parrot",
    "peanut",  "pebble",   "pelican", "pepper",  "piano",   "pigeon",   "pillow",  "pine",    "planet",  "plum",
    "pocket",  "pond",     "poppy",   "prairie", "puffin",  "pumpkin",  "quail",   "quarry",  "quartz",  "quill",
    "rabbit",  "radish",   "raven",   "reed",    "ribbon",  "river",    "robin",   "rocket",  "saddle",  "saffron",
    "salmon",  "sandal",   "sapling", "saucer",  "sheep",   "shell",    "shovel",  "sparrow", "spider",  "spoon",
    "spruce",  "squirrel", "statue",  "stream",  "sunset",  "swan",     "table",   "teapot",  "thimble", "thistle",
    "tiger",   "timber",   "tower",   "trail",   "trumpet", "tulip",    "tunnel",  "turnip",  "turtle",  "valley",
    "vase",    "village",  "violin",  "wagon",   "walnut",  "walrus",   "whale",   "whistle", "willow",  "window",
    "wolf",    "yarn",     "zebra"};

}  // namespace mikv::cli
