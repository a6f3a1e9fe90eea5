//! What the prompts are about: topics of many fields, each with words that answers can easily use.

use arriero_buffers::random::{Purpose, Stream};

use super::Split;

/// What a prompt is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Topic {
    /// Its name, as it stands after "about".
    pub(super) name: &'static str,
    /// Words of its field.
    pub(super) words: &'static [&'static str],
}

/// The second part of the key under which topics are divided; those before it are the splits' own.
const DIVISION: u64 = 2;

/// The topics of a split: of all in an order drawn under the seed, the first 60 in 100 for training.
pub(super) fn of_split(seed: u64, split: Split) -> Vec<Topic> {
    let mut topics = all();
    Stream::new(seed, Purpose::Prompts, DIVISION, 0).shuffle(&mut topics);
    let held_out = topics.split_off(topics.len() * 60 / 100);
    match split {
        Split::Train => topics,
        Split::HeldOut => held_out,
    }
}

/// Every topic.
pub(super) fn all() -> Vec<Topic> {
    let topics = |&(words, names): &Field| names.iter().map(move |&name| Topic { name, words });
    FIELDS.iter().flat_map(topics).collect()
}

/// Words that suit a field, and its topics.
type Field = (&'static [&'static str], &'static [&'static str]);

#[rustfmt::skip]
const FIELDS: &[Field] = &[
    (&["animal", "wild", "nature", "life", "young", "strong"], &[
        "elephants", "penguins", "honeybees", "wolves", "sea turtles", "owls", "dolphins", "butterflies",
        "wild horses", "octopuses", "hedgehogs", "spiders", "frogs", "camels",
    ]),
    (&["home", "friend", "care", "happy", "love", "family"], &[
        "pet cats", "puppies", "goldfish", "parrots", "hamsters", "guide dogs", "babysitting", "neighbors",
        "grandparents", "best friends", "birthday parties", "moving to a new home",
    ]),
    (&["earth", "water", "beautiful", "nature", "land", "world"], &[
        "volcanoes", "deserts", "rainforests", "glaciers", "coral reefs", "waterfalls", "caves", "islands",
        "mountains", "earthquakes", "rivers", "beaches", "canyons", "the North Pole",
    ]),
    (&["sky", "cold", "warm", "air", "day", "season"], &[
        "thunderstorms", "rainbows", "snow", "fog", "hurricanes", "autumn leaves", "sunsets", "spring flowers",
        "summer evenings", "winter mornings", "wind", "clouds",
    ]),
    (&["space", "light", "star", "far", "night", "planet"], &[
        "the moon", "black holes", "Mars", "comets", "the rings of Saturn", "space stations", "telescopes",
        "the Milky Way", "astronauts", "solar eclipses", "meteor showers", "rockets",
    ]),
    (&["food", "taste", "fresh", "sweet", "eat", "meal"], &[
        "pizza", "sourdough bread", "chocolate", "sushi", "vegetable soup", "pancakes", "cheese", "ice cream",
        "apples", "tomatoes", "spicy food", "breakfast", "popcorn", "salads",
    ]),
    (&["drink", "cup", "hot", "fresh", "morning", "enjoy"], &[
        "green tea", "coffee", "lemonade", "hot cocoa", "orange juice", "smoothies", "mineral water",
        "milkshakes", "herbal tea", "coconut water",
    ]),
    (&["game", "team", "play", "fun", "ball", "win"], &[
        "soccer", "basketball", "tennis", "volleyball", "table tennis", "baseball", "ice hockey", "rugby",
        "the Olympic Games", "beach games", "cricket", "golf",
    ]),
    (&["body", "health", "strong", "energy", "daily", "feel"], &[
        "yoga", "running", "swimming", "sleep", "stretching", "walking", "cycling", "healthy snacks",
        "deep breathing", "washing your hands", "sunscreen", "brushing your teeth",
    ]),
    (&["music", "sound", "song", "hear", "play", "dance"], &[
        "pianos", "jazz", "guitars", "choirs", "drums", "street musicians", "violins", "lullabies", "opera",
        "rock concerts", "humming", "ballet",
    ]),
    (&["art", "color", "create", "beautiful", "hand", "idea"], &[
        "watercolors", "photography", "pottery", "origami", "knitting", "street art", "sculptures", "museums",
        "comic books", "fashion design", "calligraphy", "quilts",
    ]),
    (&["book", "read", "story", "word", "learn", "imagine"], &[
        "poetry", "fairy tales", "mystery novels", "libraries", "bookshops", "science fiction", "diaries",
        "dictionaries", "detective stories", "bedtime stories", "newspapers", "handwritten letters",
    ]),
    (&["school", "learn", "student", "class", "help", "study"], &[
        "homework", "math puzzles", "spelling", "science fairs", "field trips", "exams", "school lunches",
        "history lessons", "good teachers", "group projects", "learning a new language", "chess clubs",
    ]),
    (&["computer", "screen", "new", "fast", "modern", "use"], &[
        "robots", "smartphones", "video games", "passwords", "email", "online maps", "board games",
        "electric cars", "drones", "headphones", "artificial intelligence", "computer keyboards",
    ]),
    (&["travel", "road", "trip", "visit", "journey", "far"], &[
        "train rides", "camping", "airports", "road trips", "hotels", "city maps", "suitcases", "sailing",
        "hot air balloons", "bicycles", "buses", "lighthouses",
    ]),
    (&["city", "street", "people", "place", "visit", "old"], &[
        "Paris", "Tokyo", "New York", "Venice", "Cairo", "London", "Rio de Janeiro", "Sydney", "skyscrapers",
        "farmers markets", "public parks", "bridges", "castles",
    ]),
    (&["history", "old", "people", "time", "king", "ancient"], &[
        "the pyramids of Egypt", "Vikings", "knights", "the Roman Empire", "dinosaurs", "the Silk Road",
        "pirates", "samurai", "the first airplanes", "cave paintings", "ancient Greece", "windmills",
    ]),
    (&["work", "job", "people", "skill", "help", "day"], &[
        "firefighters", "nurses", "bakers", "farmers", "carpenters", "pilots", "job interviews", "teamwork",
        "meetings", "time management", "plumbers", "gardeners",
    ]),
    (&["money", "save", "buy", "price", "plan", "pay"], &[
        "saving money", "shopping lists", "piggy banks", "gift cards", "flea markets", "coupons", "budgets",
        "online shopping", "recycling", "second-hand clothes",
    ]),
    (&["garden", "green", "grow", "water", "sun", "plant"], &[
        "roses", "houseplants", "sunflowers", "cactuses", "compost", "herbs", "oak trees", "bamboo",
        "mushrooms", "vegetable gardens", "tulips", "moss",
    ]),
    (&["feel", "kind", "people", "happy", "smile", "life"], &[
        "friendship", "courage", "patience", "kindness", "laughter", "gratitude", "honesty", "curiosity",
        "daydreams", "saying sorry", "trust", "boredom",
    ]),
    (&["science", "energy", "study", "small", "light", "world"], &[
        "magnets", "gravity", "atoms", "electricity", "microscopes", "solar power", "the human heart",
        "fossils", "vaccines", "crystals", "sound waves", "batteries",
    ]),
];
