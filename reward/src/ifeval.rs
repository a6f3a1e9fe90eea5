//! IFEval's 25 kinds of instructions, with the verdicts of its official checker.
//!
//! Source: Zhou et al., "Instruction-Following Evaluation for Large Language Models"
//! (arXiv:2311.07911) and the checker published with it (`instruction_following_eval`).
//!
//! - [`Instruction`]: one instruction, read from its id and its arguments, and the check;
//! - [`verdicts`]: strict and loose, for each instruction of a prompt;
//! - `arguments`: reading `kwargs`; `text`: counting as the checker does; `sentences`, `capitals`:
//!   NLTK's sentences and words; `language`: which language.
//!
//! These checks are the benchmark's, with its quirks. [`Constraint`] has stricter
//! ones for prompts of our own; where both mean the same, the check is shared.
//!
//! The same verdicts as the official checker's except where it draws at random (a missing argument,
//! or a letter that is none of a–z: here the first is an error, and the second gets the verdict of most draws; and in
//! language identification) and in sentence counting.

mod arguments;
mod capitals;
mod language;
mod sentences;
mod text;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::constraint::Constraint;
use crate::constraint::Relation;
use crate::constraint::text::letter_count;
use arguments::Arguments;
use language::Language;

/// Every instruction id.
pub const INSTRUCTION_IDS: &[&str] = &[
    "keywords:existence",
    "keywords:frequency",
    "keywords:forbidden_words",
    "keywords:letter_frequency",
    "language:response_language",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "length_constraints:number_words",
    "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:number_bullet_lists",
    "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "detectable_format:title",
    "combination:two_responses",
    "combination:repeat_prompt",
    "startend:end_checker",
    "change_case:capital_word_frequency",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "punctuation:no_comma",
    "startend:quotation",
];

/// One instruction, ready to check any number of responses.
#[derive(Debug, Clone)]
pub struct Instruction {
    id: &'static str,
    check: Check,
}

/// A number of something, and how it compares with the bound.
#[derive(Debug, Clone, Copy)]
struct Bound {
    relation: Relation,
    count: usize,
}

impl Bound {
    fn holds(self, found: usize) -> bool {
        self.relation.holds(found, self.count)
    }
}

#[derive(Debug, Clone)]
enum Check {
    Keywords(Vec<Regex>),
    KeywordFrequency(Regex, Bound),
    ForbiddenWords(Vec<Regex>),
    LetterFrequency(char, Bound),
    Language(Language),
    Sentences(Bound),
    Paragraphs(usize),
    Words(Bound),
    NthParagraphFirstWord {
        paragraphs: usize,
        nth: usize,
        word: String,
    },
    Placeholders(usize),
    Postscript(Regex),
    Bullets(usize),
    ConstrainedResponse,
    Highlights(usize),
    Sections(Regex, usize),
    Json,
    Title,
    TwoResponses,
    RepeatPrompt(String),
    EndPhrase(String),
    CapitalWords(Bound),
    /// English, and in one case only.
    EnglishCase(Constraint),
    Constraint(Constraint),
    Quotation,
}

impl Instruction {
    /// Reads an instruction from its id and its arguments, the members of `kwargs` that are not null.
    ///
    /// # Errors
    /// With a sentence that names the id or the argument that is missing, unknown or out of range.
    pub fn new(id: &str, kwargs: &Map<String, Value>) -> Result<Self, String> {
        let Some(id) = INSTRUCTION_IDS.iter().copied().find(|known| *known == id) else {
            let near = |known: &&&str| strsim::normalized_damerau_levenshtein(id, known);
            let nearest = INSTRUCTION_IDS.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
            return Err(format!(
                "instruction {id:?} is none of IFEval's; the nearest is {:?}",
                nearest.copied().unwrap_or_default()
            ));
        };
        let mut arguments = Arguments::new(id, kwargs);
        let check = Check::read(id, &mut arguments)?;
        arguments.finish()?;
        Ok(Instruction { id, check })
    }

    /// Its id, such as `punctuation:no_comma`.
    pub fn id(&self) -> &'static str {
        self.id
    }

    /// True if the response follows the instruction to the letter. A blank one follows none.
    pub fn check(&self, response: &str) -> bool {
        !text::strip(response).is_empty() && self.check.holds(response)
    }
}

impl Check {
    fn read(id: &str, arguments: &mut Arguments<'_>) -> Result<Self, String> {
        Ok(match id {
            "keywords:existence" => Check::Keywords(
                arguments
                    .texts("keywords")?
                    .iter()
                    .map(|word| pattern("keywords", word))
                    .collect::<Result<_, _>>()?,
            ),
            "keywords:frequency" => {
                let keyword = arguments.text("keyword")?;
                let keyword = pattern("keyword", text::strip(&keyword))?;
                Check::KeywordFrequency(keyword, arguments.bound("relation", "frequency")?)
            }
            "keywords:forbidden_words" => {
                let words = arguments.texts("forbidden_words")?;
                let whole = |word: &String| pattern("forbidden_words", &format!(r"\b{word}\b"));
                Check::ForbiddenWords(words.iter().map(whole).collect::<Result<_, _>>()?)
            }
            "keywords:letter_frequency" => {
                let letter = arguments.letter("letter")?;
                Check::LetterFrequency(letter, arguments.bound("let_relation", "let_frequency")?)
            }
            "language:response_language" => {
                Check::Language(Language::from_code(&arguments.text("language")?)?)
            }
            "length_constraints:number_sentences" => {
                Check::Sentences(arguments.bound("relation", "num_sentences")?)
            }
            "length_constraints:number_paragraphs" => Check::Paragraphs(arguments.count("num_paragraphs")?),
            "length_constraints:number_words" => Check::Words(arguments.bound("relation", "num_words")?),
            "length_constraints:nth_paragraph_first_word" => {
                let paragraphs = arguments.count("num_paragraphs")?;
                let nth = arguments.count("nth_paragraph")?;
                if nth == 0 || nth > paragraphs {
                    return Err(format!(
                        "nth_paragraph is {nth}, but must be from 1 to num_paragraphs, {paragraphs}"
                    ));
                }
                Check::NthParagraphFirstWord {
                    paragraphs,
                    nth,
                    word: arguments.text("first_word")?.to_lowercase(),
                }
            }
            "detectable_content:number_placeholders" => {
                Check::Placeholders(arguments.count("num_placeholders")?)
            }
            "detectable_content:postscript" => {
                let marker = arguments.text("postscript_marker")?;
                Check::Postscript(match text::strip(&marker) {
                    "P.P.S" => pattern("postscript_marker", r"p\.\s?p\.\s?s")?,
                    "P.S." => pattern("postscript_marker", r"p\.\s?s\.")?,
                    other => pattern("postscript_marker", &other.to_lowercase())?,
                })
            }
            "detectable_format:number_bullet_lists" => Check::Bullets(arguments.count("num_bullets")?),
            "detectable_format:constrained_response" => Check::ConstrainedResponse,
            "detectable_format:number_highlighted_sections" => {
                Check::Highlights(arguments.count("num_highlights")?)
            }
            "detectable_format:multiple_sections" => {
                let splitter = arguments.text("section_spliter")?;
                // The case of a section's mark matters, so no `pattern` here.
                let pattern = format!(r"\s?{}\s?\d+\s?", text::strip(&splitter));
                let splitter = compile("section_spliter", &pattern)?;
                Check::Sections(splitter, arguments.count("num_sections")?)
            }
            "detectable_format:json_format" => Check::Json,
            "detectable_format:title" => Check::Title,
            "combination:two_responses" => Check::TwoResponses,
            "combination:repeat_prompt" => {
                Check::RepeatPrompt(text::strip(&arguments.text("prompt_to_repeat")?).to_lowercase())
            }
            "startend:end_checker" => {
                Check::EndPhrase(text::strip(&arguments.text("end_phrase")?).to_lowercase())
            }
            "change_case:capital_word_frequency" => {
                Check::CapitalWords(arguments.bound("capital_relation", "capital_frequency")?)
            }
            "change_case:english_capital" => Check::EnglishCase(Constraint::AllUppercase {}),
            "change_case:english_lowercase" => Check::EnglishCase(Constraint::AllLowercase {}),
            "punctuation:no_comma" => Check::Constraint(Constraint::NoComma {}),
            "startend:quotation" => Check::Quotation,
            _ => return Err(format!("instruction {id:?} has no check")),
        })
    }

    fn holds(&self, response: &str) -> bool {
        match self {
            Check::Keywords(words) => words.iter().all(|word| word.is_match(response)),
            Check::KeywordFrequency(word, bound) => bound.holds(word.find_iter(response).count()),
            Check::ForbiddenWords(words) => !words.iter().any(|word| word.is_match(response)),
            Check::LetterFrequency(letter @ 'a'..='z', bound) => bound.holds(letter_count(response, *letter)),
            // The official checker draws a letter then; most draws would give this verdict.
            Check::LetterFrequency(_, bound) => {
                ('a'..='z').filter(|letter| bound.holds(letter_count(response, *letter))).count() >= 13
            }
            Check::Language(language) => language::is_in(response, language),
            Check::Sentences(bound) => bound.holds(sentences::count(response)),
            Check::Paragraphs(count) => text::divided_paragraphs(response) == Some(*count),
            Check::Words(bound) => bound.holds(text::words(response)),
            Check::NthParagraphFirstWord { paragraphs, nth, word } => {
                text::nth_paragraph_starts(response, *paragraphs, *nth, word)
            }
            Check::Placeholders(count) => text::placeholders(response) >= *count,
            Check::Postscript(marker) => marker.is_match(&response.to_lowercase()),
            Check::Bullets(count) => text::bullets(response) == *count,
            Check::ConstrainedResponse => text::has_constrained_response(response),
            Check::Highlights(count) => text::highlights(response) >= *count,
            Check::Sections(mark, count) => mark.find_iter(response).count() >= *count,
            Check::Json => text::is_json(response),
            Check::Title => text::has_title(response),
            Check::TwoResponses => text::is_two_responses(response),
            Check::RepeatPrompt(prompt) => text::starts_with_lower(text::strip(response), prompt),
            Check::EndPhrase(phrase) => {
                text::strip(response).trim_matches('"').to_lowercase().ends_with(phrase.as_str())
            }
            Check::CapitalWords(bound) => bound.holds(capitals::count(response)),
            Check::EnglishCase(case) => {
                case.check(response) && language::is_in(response, &Language::english())
            }
            Check::Constraint(constraint) => constraint.check(response),
            Check::Quotation => {
                let response = text::strip(response);
                response.len() > 1 && response.starts_with('"') && response.ends_with('"')
            }
        }
    }
}

/// A pattern that matches whatever the case. Keywords are regular expressions in the official checker.
fn pattern(argument: &str, pattern: &str) -> Result<Regex, String> {
    compile(argument, &format!("(?i){pattern}"))
}

fn compile(argument: &str, pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern)
        .map_err(|error| format!("{argument} is no regular expression that can be checked: {error}"))
}

/// What became of one instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstructionVerdict {
    /// The instruction's id.
    pub id: String,
    /// Whether the response as it is follows it.
    pub strict: bool,
    /// Whether the response follows it, as it is or without its first line, its last line, its
    /// asterisks, or several of these.
    pub loose: bool,
}

/// Reads a prompt's instructions. `kwargs` has one object an instruction, in their order.
///
/// # Errors
/// With a sentence that names the instruction and what is wrong with it.
pub fn instructions(ids: &[String], kwargs: &[Map<String, Value>]) -> Result<Vec<Instruction>, String> {
    if ids.len() != kwargs.len() {
        return Err(format!(
            "instruction_id_list has {} entries, but kwargs has {}; give each instruction its object, {{}} if it has no arguments",
            ids.len(),
            kwargs.len()
        ));
    }
    ids.iter().zip(kwargs).map(|(id, kwargs)| Instruction::new(id, kwargs)).collect()
}

/// The verdicts of a response, in the order of the instructions.
pub fn verdicts(instructions: &[Instruction], response: &str) -> Vec<InstructionVerdict> {
    let mut relaxed: Option<Vec<String>> = None;
    let verdict = |instruction: &Instruction| {
        let strict = instruction.check(response);
        let loose = strict
            || relaxed
                .get_or_insert_with(|| relaxed_forms(response))
                .iter()
                .any(|form| instruction.check(form));
        InstructionVerdict { id: instruction.id.to_string(), strict, loose }
    };
    instructions.iter().map(verdict).collect()
}

/// The response without its first line, its last line or both, and all of these without asterisks.
/// Forms that repeat another, and blank ones, are left out: they cannot change a verdict.
fn relaxed_forms(response: &str) -> Vec<String> {
    let first_end = response.find('\n');
    let last_start = response.rfind('\n');
    let without_first = first_end.map_or("", |end| &response[end + 1..]);
    let without_last = last_start.map_or("", |start| &response[..start]);
    let without_both = match (first_end, last_start) {
        (Some(end), Some(start)) if end < start => &response[end + 1..start],
        _ => "",
    };
    let lines = [without_first, without_last, without_both].map(text::strip);
    let mut forms: Vec<String> = Vec::new();
    let plain = lines.into_iter().map(str::to_string);
    let bare = std::iter::once(response)
        .chain(lines)
        .filter(|form| form.contains('*'))
        .map(|form| form.replace('*', ""));
    for form in plain.chain(bare) {
        if !text::strip(&form).is_empty() && form != response && !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

#[cfg(test)]
mod tests;
