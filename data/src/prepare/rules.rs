//! Rules about an answer's text, as in section 4.2.3 of the Llama 3 report (Grattafiori et al., 2024): overused emoji,
//! exclamation marks, apologies and phrases.

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::row::Row;

/// What an answer may be. Of a pair, only the chosen (or edited) answer counts: what is wrong with the rejected one is
/// worth learning. Rows without an answer pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RulesConfig {
    /// At most this many emoji in an answer. Default any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_emoji: Option<usize>,
    /// At most this many exclamation marks in an answer. Default any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_exclamations: Option<usize>,
    /// At most this share of the rows may begin their answer with an apology, from 0 to 1. The hash of their prompts
    /// decides which of them stay. Default any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_apologies: Option<f64>,
    /// What an apology begins with, whatever the letters' case.
    pub apologies: Vec<String>,
    /// Regular expressions that no answer may match, whatever the letters' case. Default none.
    pub forbidden: Vec<String>,
    /// The fewest characters of an answer. Default 0.
    pub min_characters: usize,
    /// The most characters of an answer. Default any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_characters: Option<usize>,
}

impl Default for RulesConfig {
    fn default() -> Self {
        let apologies =
            ["i'm sorry", "i am sorry", "sorry", "i apologize", "i apologise", "my apologies", "apologies"];
        RulesConfig {
            max_emoji: None,
            max_exclamations: None,
            max_apologies: None,
            apologies: apologies.map(String::from).to_vec(),
            forbidden: Vec::new(),
            min_characters: 0,
            max_characters: None,
        }
    }
}

/// The rules, ready to be applied.
pub(super) struct Rules {
    config: RulesConfig,
    emoji: Regex,
    forbidden: Vec<Regex>,
}

impl RulesConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// With a sentence that begins with the option's name.
    pub fn validate(&self) -> Result<(), String> {
        if self.max_apologies.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err("max_apologies must be from 0 to 1".to_string());
        }
        if self.max_characters.is_some_and(|most| most < self.min_characters) {
            return Err("max_characters is less than min_characters".to_string());
        }
        self.compiled().map(drop)
    }

    pub(super) fn compiled(&self) -> Result<Rules, String> {
        let compile = |pattern: &String| {
            let built = RegexBuilder::new(pattern).case_insensitive(true).build();
            built.map_err(|cause| format!("forbidden has the wrong pattern {pattern:?}: {cause}"))
        };
        // Those shown as pictures by default, and those that ask for it.
        let emoji =
            Regex::new(r"\p{Emoji_Presentation}|\p{Emoji}\x{FE0F}").map_err(|cause| cause.to_string())?;
        let forbidden = self.forbidden.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Rules { config: self.clone(), emoji, forbidden })
    }
}

impl Rules {
    /// Why a row is dropped, if it is.
    pub fn drops(&self, row: &Row) -> Option<&'static str> {
        let answers = learnt_texts(row);
        let config = &self.config;
        let over = |most: Option<usize>, count: &dyn Fn(&str) -> usize| {
            most.is_some_and(|most| answers.iter().any(|answer| count(answer) > most))
        };
        let characters = |answer: &str| answer.chars().count();
        if over(config.max_emoji, &|answer| self.emoji.find_iter(answer).count()) {
            return Some("too_many_emoji");
        }
        if over(config.max_exclamations, &|answer| answer.matches(['!', '！']).count()) {
            return Some("too_many_exclamations");
        }
        if answers.iter().any(|answer| self.forbidden.iter().any(|pattern| pattern.is_match(answer))) {
            return Some("forbidden_pattern");
        }
        if answers.iter().any(|answer| characters(answer) < config.min_characters) {
            return Some("too_short");
        }
        if over(config.max_characters, &characters) {
            return Some("too_long");
        }
        None
    }

    /// Whether an answer of the row begins with an apology.
    pub fn apologises(&self, row: &Row) -> bool {
        let begins = |answer: &String| {
            // Typographic apostrophes are apostrophes.
            let answer = answer.trim_start().to_lowercase().replace('’', "'");
            self.config.apologies.iter().any(|opener| {
                answer
                    .strip_prefix(&opener.to_lowercase())
                    .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
            })
        };
        learnt_texts(row).iter().any(begins)
    }
}

/// The assistant's turns that are worth learning.
fn learnt_texts(row: &Row) -> Vec<String> {
    let answers = row.answers();
    let own = |name: &str| answers.iter().find(|(field, _)| *field == name).map(|(_, turns)| turns);
    let turns = match row {
        Row::Prompt { .. } | Row::Unpaired { label: false, .. } => None,
        Row::Preference { .. } => own("edited").or_else(|| own("chosen")),
        _ => answers.first().map(|(_, turns)| turns),
    };
    let is_own = |turn: &&arriero_buffers::Message| turn.role == arriero_buffers::Role::Assistant;
    turns.into_iter().flatten().filter(is_own).map(|turn| turn.content.clone()).collect()
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Message;

    use super::*;

    fn says(text: &str) -> Vec<Message> {
        vec![Message::assistant(text)]
    }

    fn answer(text: &str) -> Row {
        Row::Completion { prompt: vec![Message::user("Hi.")], completion: says(text) }
    }

    fn rules(change: fn(&mut RulesConfig)) -> Rules {
        let mut config = RulesConfig::default();
        change(&mut config);
        config.compiled().expect("rules")
    }

    #[test]
    fn each_rule_drops_what_it_names() {
        let emoji = rules(|config| config.max_emoji = Some(2));
        // A digit or a sign of trademark is no emoji; a heart is one if it asks for it.
        assert_eq!(emoji.drops(&answer("1 © ™ 🎉 ❤\u{fe0f}")), None);
        assert_eq!(emoji.drops(&answer("🎉🎉🚀")), Some("too_many_emoji"));
        let loud = rules(|config| config.max_exclamations = Some(1));
        assert_eq!(loud.drops(&answer("Yes! Yes!")), Some("too_many_exclamations"));
        let phrases = rules(|config| config.forbidden = vec!["as an ai (language )?model".into()]);
        assert_eq!(phrases.drops(&answer("As an AI model, …")), Some("forbidden_pattern"));
        let sized = rules(|config| (config.min_characters, config.max_characters) = (2, Some(4)));
        assert_eq!(sized.drops(&answer("ñ")), Some("too_short"));
        assert_eq!(sized.drops(&answer("ññññ")), None);
        assert_eq!(sized.drops(&answer("ñññññ")), Some("too_long"));
    }

    #[test]
    fn apologies_are_openers() {
        let rules = rules(|_| ());
        assert!(rules.apologises(&answer(" I’m SORRY, but no.")));
        assert!(!rules.apologises(&answer("Sorrywood is a place.")));
        assert!(!rules.apologises(&answer("She said: I'm sorry.")));
    }

    #[test]
    fn of_a_pair_the_better_answer_is_looked_at() {
        let loud = rules(|config| config.max_exclamations = Some(0));
        let pair = |edited: Option<&str>| Row::Preference {
            prompt: vec![Message::user("Hi.")],
            chosen: says("Yes!"),
            rejected: says("No!!"),
            edited: edited.map(says),
            strength: None,
            margin: None,
        };
        assert_eq!(loud.drops(&pair(Some("Yes."))), None);
        assert_eq!(loud.drops(&pair(None)), Some("too_many_exclamations"));
        let prompt = Row::Prompt { messages: vec![Message::user("Hi!")], checks: serde_json::Value::Null };
        assert_eq!(loud.drops(&prompt), None);
    }
}
