//! The sentences that tell a model its constraints.

use super::{Constraint, Relation};

impl Constraint {
    /// How many ways there are to tell a constraint.
    pub const PHRASINGS: usize = 3;

    /// One English sentence that tells the constraint. `variant` chooses the phrasing; any number
    /// will do.
    pub fn instruction(&self, variant: usize) -> String {
        let [first, second, third] = self.phrasings();
        match variant % Self::PHRASINGS {
            0 => first,
            1 => second,
            _ => third,
        }
    }

    fn phrasings(&self) -> [String; Constraint::PHRASINGS] {
        use Constraint::*;
        match self {
            AllLowercase {} => fixed([
                "Answer in all lowercase letters.",
                "Use only lowercase letters.",
                "Do not use any capital letters.",
            ]),
            AllUppercase {} => fixed([
                "Answer in all capital letters.",
                "Use only capital letters.",
                "Write everything in uppercase.",
            ]),
            NoComma {} => fixed([
                "Do not use any commas.",
                "Your answer must not contain a comma.",
                "Write without commas.",
            ]),
            Keywords { words } => keywords(words),
            ForbiddenWords { words } => forbidden(words),
            KeywordFrequency { word, at_least } => [
                format!("Use the word \"{word}\" at least {}.", times(*at_least)),
                format!("The word \"{word}\" must appear at least {}.", times(*at_least)),
                format!("Say \"{word}\" {} or more.", times(*at_least)),
            ],
            MinWords { at_least } => {
                let words = many(*at_least, "word");
                [
                    format!("Use at least {words}."),
                    format!("Your answer must have {words} or more."),
                    format!("Write at least {words}."),
                ]
            }
            MaxWords { at_most } => {
                let words = many(*at_most, "word");
                [
                    format!("Use at most {words}."),
                    format!("Do not use more than {words}."),
                    format!("Keep your answer to {words} or fewer."),
                ]
            }
            Sentences { relation, count } => {
                let bound = match relation {
                    Relation::Exactly => "exactly",
                    Relation::AtLeast => "at least",
                    Relation::AtMost => "at most",
                };
                let sentences = format!("{bound} {}", many(*count, "sentence"));
                [
                    format!("Write {sentences}."),
                    format!("Your answer must have {sentences}."),
                    format!("Use {sentences}."),
                ]
            }
            Paragraphs { count } => {
                let paragraphs = many(*count, "paragraph");
                [
                    format!("Write exactly {paragraphs} with a blank line between paragraphs."),
                    format!("Your answer must have exactly {paragraphs}, separated by blank lines."),
                    format!("Split your answer into exactly {paragraphs} using blank lines."),
                ]
            }
            Bullets { count } => {
                let points = many(*count, "bullet point");
                [
                    format!("Give exactly {points}, each on a line that starts with \"* \"."),
                    format!("Answer with exactly {points}, each starting with \"- \"."),
                    format!("Your answer must have exactly {points}, such as \"* This is a point\"."),
                ]
            }
            NumberedList { count } => {
                let items = many(*count, "item");
                [
                    format!("Answer with a numbered list of exactly {items}."),
                    format!("Give exactly {items} as a numbered list that starts with \"1. \"."),
                    format!("Write a numbered list (1. 2. and so on) with exactly {items}."),
                ]
            }
            StartWith { phrase } => [
                format!("Start your answer with \"{phrase}\"."),
                format!("Begin with the words \"{phrase}\"."),
                format!("The first words of your answer must be \"{phrase}\"."),
            ],
            EndWith { phrase } => [
                format!("End your answer with \"{phrase}\"."),
                format!("Finish with the words \"{phrase}\"."),
                format!("The last words of your answer must be \"{phrase}\"."),
            ],
            Json {} => fixed([
                "Give the whole answer as a JSON object.",
                "Answer only with a JSON object such as {\"answer\": \"...\"}.",
                "Your entire answer must be one valid JSON object.",
            ]),
            Title {} => fixed([
                "Add a title in double angular brackets, such as <<my title>>.",
                "Your answer must have a title written like <<title>>.",
                "Give your answer a title wrapped in << and >>.",
            ]),
            Highlighted { count } => {
                let parts = many(*count, "part");
                [
                    format!("Highlight at least {parts} of your answer with asterisks, like *this*."),
                    format!("Put at least {parts} of your answer between asterisks, such as *one part*."),
                    format!("Use *asterisks* to highlight {parts} or more of your answer."),
                ]
            }
            Quotation {} => fixed([
                "Put your whole answer in double quotation marks.",
                "Wrap your entire answer in double quotes.",
                "Your answer must start and end with a double quotation mark.",
            ]),
            Placeholders { count } => {
                let placeholders = many(*count, "placeholder");
                [
                    format!("Include at least {placeholders} in square brackets, such as [name]."),
                    format!("Use at least {placeholders} like [place] or [date]."),
                    format!("Your answer must contain {placeholders} or more, written like [name]."),
                ]
            }
            Question {} => fixed([
                "End your answer with a question mark.",
                "Finish with a question.",
                "The last sentence must be a question.",
            ]),
            Exclamation {} => fixed([
                "End your answer with an exclamation mark.",
                "Finish with an exclamation mark.",
                "The last sentence must end with \"!\".",
            ]),
            Postscript {} => fixed([
                "At the end add a postscript that starts with P.S.",
                "Finish with a short postscript, starting with P.S.",
                "Add a final note that begins with P.S.",
            ]),
            NoDigits {} => fixed([
                "Do not use any digits.",
                "Your answer must not contain digits (0-9).",
                "Write without any digits.",
            ]),
            Digits { at_least } => {
                let digits = many(*at_least, "digit");
                [
                    format!("Include at least {digits} (0-9)."),
                    format!("Your answer must contain at least {digits} (0-9)."),
                    format!("Use {digits} or more (0-9) in your answer."),
                ]
            }
            CapitalWords { at_least } => {
                let words = many(*at_least, "word");
                [
                    format!("Write at least {words} in ALL CAPITAL letters."),
                    format!("Use at least {words} in all caps, like THIS."),
                    format!("Put {words} or more in capital letters only."),
                ]
            }
            LetterFrequency { letter, at_least } => [
                format!("Use the letter \"{letter}\" at least {}.", times(*at_least)),
                format!("The letter \"{letter}\" must appear at least {}.", times(*at_least)),
                format!("Your answer must have the letter \"{letter}\" {} or more.", times(*at_least)),
            ],
        }
    }
}

fn keywords(words: &[String]) -> [String; Constraint::PHRASINGS] {
    let noun = if words.len() == 1 { "word" } else { "words" };
    let list = quoted(words, "and");
    [
        format!("Use the {noun} {list} in your answer."),
        format!("Include the {noun} {list}."),
        format!("Your answer must contain the {noun} {list}."),
    ]
}

fn forbidden(words: &[String]) -> [String; Constraint::PHRASINGS] {
    let noun = if words.len() == 1 { "word" } else { "words" };
    let list = quoted(words, "or");
    [
        format!("Do not use the {noun} {list}."),
        format!("Your answer must not contain the {noun} {list}."),
        format!("Avoid the {noun} {list}."),
    ]
}

fn fixed(phrasings: [&str; Constraint::PHRASINGS]) -> [String; Constraint::PHRASINGS] {
    phrasings.map(String::from)
}

fn many(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

fn times(count: usize) -> String {
    match count {
        1 => "once".to_string(),
        2 => "twice".to_string(),
        _ => format!("{count} times"),
    }
}

/// The words in quotes, `joint` between them.
fn quoted(words: &[String], joint: &str) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    quoted.join(&format!(" {joint} "))
}
