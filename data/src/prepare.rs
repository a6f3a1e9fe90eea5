//! Preparation of datasets, as section 4.2 of the Llama 3 report describes it: rules, duplicates by words and by meaning,
//! topics, scores, and the mix of several sources.
//!
//! - `config`: what is done ([`Preparation`]); `rules`, [`minhash`], `semantic`, `mix`: the steps;
//! - `report`: what became of every row ([`Report`]);
//! - `spool`: rows on their way, on disk.
//!
//! Nothing here knows a model: embeddings and scores come from the caller ([`Annotator`]). What is written depends on the
//! files, the configuration and these alone.

mod config;
pub mod minhash;
mod mix;
mod report;
mod rules;
mod semantic;
mod spool;

pub use config::{
    Compared, NearDuplicatesConfig, Preparation, ScoreRule, SemanticDuplicatesConfig, Source, Topic,
};
pub use report::{Report, ScoreFigures, SourceReport};
pub use rules::RulesConfig;

use std::collections::BTreeMap;
use std::io::Write;

use arriero_buffers::random::{Purpose, Stream};
use arriero_buffers::{Message, Role};
use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value, json};

use crate::error::DataError;
use crate::row::Row;
use crate::rows::Entry;
use minhash::{MinHash, Neighbours};
use spool::Spool;

/// Rows that are embedded or scored at a time.
const BATCH: usize = 64;

/// A prompt with its answer, for a scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptCompletion {
    /// The conversation before the answer.
    pub prompt: Vec<Message>,
    /// The answer's text.
    pub completion: String,
}

/// What a preparation cannot do itself.
pub trait Annotator {
    /// Vectors of unit length, one a text, all equally long.
    ///
    /// # Errors
    /// With a sentence; it ends the preparation.
    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, String>;

    /// The score of each pair under the rule of this number.
    ///
    /// # Errors
    /// As [`Annotator::embed`].
    fn score(&mut self, rule: usize, pairs: &[PromptCompletion]) -> Result<Vec<f64>, String>;

    /// Gets now and then how far a step is: its name, rows done, rows in all (0 where that is not known).
    fn progress(&mut self, _step: &'static str, _done: usize, _all: usize) {}
}

/// A row that was not dropped when it was read. Its text is in the spool, under its number.
struct CandidateRow {
    source: usize,
    place: String,
    hash: u64,
    apologises: bool,
    topic: Option<usize>,
    scores: Vec<Option<f64>>,
    /// Why it was dropped after all.
    dropped: Option<&'static str>,
}

/// Prepares, and writes JSON lines that this crate reads: the rows with their `topic` and `scores`, where these were asked
/// for.
///
/// # Errors
/// If a source cannot be read, a helper fails, or nothing is left.
pub fn prepare(
    preparation: &Preparation,
    annotator: &mut dyn Annotator,
    output: &mut dyn Write,
) -> Result<Report, DataError> {
    preparation.validate().map_err(DataError::Config)?;
    let mut work = Pipeline::read(preparation, annotator)?;
    work.score(annotator)?;
    work.compare(annotator)?;
    work.thin_apologies();
    work.write(output)?;
    Ok(work.report)
}

/// A preparation under way.
struct Pipeline<'a> {
    preparation: &'a Preparation,
    spool: Spool,
    rows: Vec<CandidateRow>,
    report: Report,
}

impl<'a> Pipeline<'a> {
    /// Reads the sources: rules and near-duplicates are dropped at once.
    fn read(preparation: &'a Preparation, annotator: &mut dyn Annotator) -> Result<Self, DataError> {
        let rules = preparation
            .rules
            .as_ref()
            .map(|rules| rules.compiled())
            .transpose()
            .map_err(DataError::Config)?;
        let near = preparation.near_duplicates.as_ref();
        let hashing = near.map(|near| (MinHash::new(near.permutations, near.ngram), near.of));
        let mut neighbours = near.map(|near| Neighbours::new(near.threshold, near.permutations));
        let keywords: Vec<Option<Regex>> = preparation
            .topics
            .iter()
            .map(keyword_pattern)
            .collect::<Result<_, _>>()
            .map_err(DataError::Config)?;
        let spool = Spool::new().map_err(spooled)?;
        let mut work = Pipeline { preparation, spool, rows: Vec::new(), report: Report::default() };
        let mut first: Option<(&'static str, String)> = None;
        for (number, source) in preparation.sources.iter().enumerate() {
            let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
            let mut opened = source.data.open(preparation.seed)?;
            for entry in opened.by_ref() {
                let entry = entry?;
                let (kind, place) = first.get_or_insert_with(|| (entry.row.kind(), entry.place()));
                if *kind != entry.row.kind() {
                    // A file of several types could not be read back.
                    let message = format!(
                        "{} is a {} row, but {place} is a {kind} row; prepare rows of one type at a time",
                        entry.place(),
                        entry.row.kind()
                    );
                    return Err(DataError::Config(message));
                }
                let mut drop = |reason: &str| *dropped.entry(reason.to_string()).or_default() += 1;
                if let Some(reason) = rules.as_ref().and_then(|rules| rules.drops(&entry.row)) {
                    drop(reason);
                    continue;
                }
                if let (Some((hashing, of)), Some(neighbours)) = (&hashing, &mut neighbours) {
                    let signature = hashing.signature(&text_of(&entry.row, *of));
                    if signature.is_some_and(|signature| neighbours.insert(signature).is_some()) {
                        drop("near_duplicate");
                        continue;
                    }
                }
                work.keep(
                    number,
                    &entry,
                    rules.as_ref().is_some_and(|rules| rules.apologises(&entry.row)),
                    &keywords,
                )?;
                if work.rows.len().is_multiple_of(1000) {
                    annotator.progress("read", work.rows.len(), 0);
                }
            }
            let counts = opened.counts();
            work.report.sources.push(SourceReport {
                name: source.name.clone(),
                read: counts.read,
                outside_split: counts.elsewhere,
                skipped: counts.skipped.iter().map(|(reason, count)| (reason.to_string(), *count)).collect(),
                examples: counts.examples.iter().map(|(place, error)| format!("{place}: {error}")).collect(),
                dropped,
                ..SourceReport::default()
            });
        }
        Ok(work)
    }

    fn keep(
        &mut self,
        source: usize,
        entry: &Entry,
        apologises: bool,
        keywords: &[Option<Regex>],
    ) -> Result<(), DataError> {
        let text = text_of(&entry.row, Compared::Row);
        let is_about =
            |pattern: &Option<Regex>| pattern.as_ref().is_some_and(|pattern| pattern.is_match(&text));
        let topic = keywords.iter().position(is_about);
        self.spool.push(&entry.to_json().to_string()).map_err(spooled)?;
        self.rows.push(CandidateRow {
            source,
            place: entry.place(),
            hash: entry.row.prompt_hash(),
            apologises,
            topic,
            scores: Vec::new(),
            dropped: None,
        });
        Ok(())
    }

    /// What a row said, with its own fields.
    fn fields(&mut self, number: usize) -> Result<Map<String, Value>, DataError> {
        let text = self.spool.get(number).map_err(spooled)?;
        serde_json::from_str(&text).map_err(|cause| spooled(cause.into()))
    }

    /// The row of a number.
    fn row(&mut self, number: usize) -> Result<Row, DataError> {
        let fields = self.fields(number)?;
        let config = &self.preparation.sources[self.rows[number].source].data;
        crate::parse::own(&fields, config)
            .map_err(|error| DataError::Row { place: self.rows[number].place.clone(), error })
    }

    /// Numbers of the rows that are still there.
    fn left(&self) -> Vec<usize> {
        (0..self.rows.len()).filter(|&number| self.rows[number].dropped.is_none()).collect()
    }

    fn score(&mut self, annotator: &mut dyn Annotator) -> Result<(), DataError> {
        for (rule_number, rule) in self.preparation.scores.iter().enumerate() {
            let left = self.left();
            self.rows.iter_mut().for_each(|row| row.scores.push(None));
            let mut done = 0;
            for batch in left.chunks(BATCH) {
                let mut pairs = Vec::new();
                let mut numbers = Vec::new();
                for &number in batch {
                    if let Some(pair) = pair(&self.row(number)?) {
                        pairs.push(pair);
                        numbers.push(number);
                    }
                }
                let scores =
                    annotator.score(rule_number, &pairs).map_err(|cause| DataError::Annotator { cause })?;
                for (number, score) in numbers.into_iter().zip(scores) {
                    // A score that is no number says nothing: the row counts as unscored.
                    self.rows[number].scores[rule_number] = Some(score).filter(|score| score.is_finite());
                }
                done += batch.len();
                annotator.progress("score", done, left.len());
            }
            self.cut(rule, rule_number, &left);
        }
        Ok(())
    }

    /// Drops by one score's bounds.
    fn cut(&mut self, rule: &ScoreRule, rule_number: usize, left: &[usize]) {
        let score = |rows: &[CandidateRow], number: usize| rows[number].scores[rule_number];
        let mut scored: Vec<(usize, f64)> =
            left.iter().filter_map(|&number| Some((number, score(&self.rows, number)?))).collect();
        let unscored = (left.len() - scored.len()) as u64;
        self.report.scores.insert(rule.name.clone(), ScoreFigures::of(&scored, unscored));
        for &(number, score) in &scored {
            if rule.min.is_some_and(|min| score < min) {
                self.rows[number].dropped = Some("score_below_min");
            } else if rule.max.is_some_and(|max| score > max) {
                self.rows[number].dropped = Some("score_above_max");
            }
        }
        if let Some(top) = rule.top {
            // Ties stay in the order of the rows.
            scored.sort_by(|one, other| other.1.total_cmp(&one.1));
            let kept = (top * scored.len() as f64).ceil() as usize;
            for &(number, _) in scored.iter().skip(kept) {
                self.rows[number].dropped.get_or_insert("score_not_at_the_top");
            }
        }
    }

    /// Topics, and duplicates in meaning.
    fn compare(&mut self, annotator: &mut dyn Annotator) -> Result<(), DataError> {
        let preparation = self.preparation;
        let left = self.left();
        let embeddings = match preparation.needs_embeddings() {
            true => self.embeddings(&left, annotator)?,
            false => Vec::new(),
        };
        let described: Vec<usize> = (0..preparation.topics.len())
            .filter(|&topic| !preparation.topics[topic].description.is_empty())
            .collect();
        if !described.is_empty() {
            let texts: Vec<String> =
                described.iter().map(|&topic| preparation.topics[topic].description.clone()).collect();
            let topics = annotator.embed(&texts).map_err(|cause| DataError::Annotator { cause })?;
            for (&number, embedding) in left.iter().zip(&embeddings) {
                let nearest = || semantic::nearest(embedding, &topics).map(|nearest| described[nearest]);
                self.rows[number].topic = self.rows[number].topic.or_else(nearest);
            }
        }
        for &number in &left {
            let row = &mut self.rows[number];
            if row.topic.is_some_and(|topic| preparation.topics[topic].drop) {
                row.dropped = Some("topic");
            }
        }
        let Some(config) = &preparation.semantic_duplicates else { return Ok(()) };
        let topic = |number: usize| self.rows[number].topic.map_or(0, |topic| topic + 1);
        let groups: Vec<usize> =
            left.iter().map(|&number| if config.within_topic { topic(number) } else { 0 }).collect();
        // The best first: the product of its scores, as quality times difficulty in the report.
        let worth = |at: usize| self.rows[left[at]].scores.iter().flatten().product::<f64>();
        let mut order: Vec<usize> =
            (0..left.len()).filter(|&at| self.rows[left[at]].dropped.is_none()).collect();
        order.sort_by(|&one, &other| worth(other).total_cmp(&worth(one)));
        let duplicates = semantic::duplicates(&embeddings, &groups, &order, config.threshold);
        for (&number, duplicate) in left.iter().zip(duplicates) {
            if duplicate.is_some() {
                self.rows[number].dropped = Some("semantic_duplicate");
            }
        }
        Ok(())
    }

    fn embeddings(
        &mut self,
        left: &[usize],
        annotator: &mut dyn Annotator,
    ) -> Result<Vec<Vec<f32>>, DataError> {
        let of = self.preparation.semantic_duplicates.as_ref().map_or(Compared::Row, |config| config.of);
        let mut embeddings = Vec::with_capacity(left.len());
        for batch in left.chunks(BATCH) {
            let texts: Vec<String> = batch
                .iter()
                .map(|&number| Ok(text_of(&self.row(number)?, of)))
                .collect::<Result<_, DataError>>()?;
            embeddings.extend(annotator.embed(&texts).map_err(|cause| DataError::Annotator { cause })?);
            annotator.progress("embed", embeddings.len(), left.len());
        }
        Ok(embeddings)
    }

    /// Drops rows that begin with an apology, until they are no more than their share of all that are left.
    fn thin_apologies(&mut self) {
        let Some(share) = self.preparation.rules.as_ref().and_then(|rules| rules.max_apologies) else {
            return;
        };
        let left = self.left();
        let mut sorry: Vec<usize> =
            left.iter().copied().filter(|&number| self.rows[number].apologises).collect();
        let others = left.len() - sorry.len();
        // a/(a + others) <= share.
        let most =
            if share >= 1.0 { sorry.len() } else { (share * others as f64 / (1.0 - share) + 1e-9) as usize };
        sorry.sort_by_key(|&number| (self.rows[number].hash, number));
        for &number in sorry.iter().skip(most) {
            self.rows[number].dropped = Some("too_many_apologies");
        }
    }

    /// Mixes and writes.
    fn write(&mut self, output: &mut dyn Write) -> Result<(), DataError> {
        let preparation = self.preparation;
        for row in &self.rows {
            let topic = row.topic.map_or("none", |topic| &preparation.topics[topic].name);
            let source = &mut self.report.sources[row.source];
            match row.dropped {
                Some(reason) => *source.dropped.entry(reason.to_string()).or_default() += 1,
                None => {
                    source.left += 1;
                    if !preparation.topics.is_empty() {
                        *self.report.topics.entry(topic.to_string()).or_default() += 1;
                    }
                }
            }
        }
        let left = self.left();
        if left.is_empty() {
            return Err(DataError::Config(
                "nothing is left: every row was skipped or dropped; the report would say why (loosen the rules)".to_string(),
            ));
        }
        let of_source = |source: usize| -> Vec<usize> {
            left.iter().copied().filter(|&number| self.rows[number].source == source).collect()
        };
        let all: Vec<Vec<usize>> = (0..preparation.sources.len()).map(of_source).collect();
        let available: Vec<usize> = all.iter().map(Vec::len).collect();
        let weights: Option<Vec<f64>> = preparation.sources.iter().map(|source| source.weight).collect();
        let quotas = mix::quotas(&available, weights.as_deref(), preparation.rows)?;
        let mut order: Vec<usize> = Vec::new();
        for (source, (numbers, quota)) in all.iter().zip(quotas).enumerate() {
            // Rows with the least hashes are written once more, or stay, where not all can.
            let mut by_hash: Vec<usize> = (0..numbers.len()).collect();
            by_hash.sort_by_key(|&at| (self.rows[numbers[at]].hash, at));
            let copies = mix::copies(&by_hash, quota);
            let report = &mut self.report.sources[source];
            report.written = quota as u64;
            report.left_over = copies.iter().filter(|&&copies| copies == 0).count() as u64;
            for (&number, copies) in numbers.iter().zip(copies) {
                order.extend(std::iter::repeat_n(number, copies));
            }
        }
        if preparation.shuffle {
            Stream::new(preparation.seed, Purpose::Dataset, u64::MAX, 1).shuffle(&mut order);
        }
        for number in order {
            let mut fields = self.fields(number)?;
            let row = &self.rows[number];
            if let Some(topic) = row.topic {
                fields.insert("topic".to_string(), json!(preparation.topics[topic].name));
            }
            if !row.scores.is_empty() {
                let names = preparation.scores.iter().map(|rule| rule.name.clone());
                let scores: Map<String, Value> = names
                    .zip(&row.scores)
                    .filter_map(|(name, score)| Some((name, json!((*score)?))))
                    .collect();
                fields.insert("scores".to_string(), Value::Object(scores));
            }
            writeln!(output, "{}", Value::Object(fields)).map_err(|cause| DataError::Unwritable { cause })?;
        }
        output.flush().map_err(|cause| DataError::Unwritable { cause })
    }
}

fn spooled(cause: std::io::Error) -> DataError {
    DataError::Unreadable { path: std::env::temp_dir(), cause }
}

/// A pattern that finds any of a topic's keywords as whole words.
fn keyword_pattern(topic: &Topic) -> Result<Option<Regex>, String> {
    if topic.keywords.is_empty() {
        return Ok(None);
    }
    let words: Vec<String> = topic.keywords.iter().map(|word| regex::escape(word)).collect();
    let pattern = format!(r"\b(?:{})\b", words.join("|"));
    let built = RegexBuilder::new(&pattern).case_insensitive(true).build();
    built.map(Some).map_err(|cause| format!("topic {}: {cause}", topic.name))
}

/// The text of a row, without roles.
fn text_of(row: &Row, of: Compared) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let answers = row.answers();
    let contents =
        |turns: &[Message]| turns.iter().map(|turn| turn.content.clone()).collect::<Vec<_>>().join("\n");
    let prompt = row.prompt().map(contents);
    let answer = answers.first().map(|(_, turns)| contents(turns));
    parts.extend(prompt.as_deref());
    if of == Compared::Row || prompt.is_none() {
        parts.extend(answer.as_deref());
    }
    parts.join("\n")
}

/// The first answer's last turn, with what stands before it. `None` for a prompt alone. A text has no prompt.
fn pair(row: &Row) -> Option<PromptCompletion> {
    let (_, mut turns) = row.answers().into_iter().next()?;
    let last = turns.iter().rposition(|turn| turn.role == Role::Assistant)?;
    turns.truncate(last + 1);
    let completion = turns.pop()?.content;
    let prompt = row.prompt().unwrap_or_default().iter().cloned().chain(turns).collect();
    Some(PromptCompletion { prompt, completion })
}

#[cfg(test)]
mod tests;
