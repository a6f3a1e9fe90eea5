//! Tokens to text while they come, and the stop strings in it.
//!
//! Text is given out as soon as it cannot change any more: not while a character lacks tokens, and
//! not while its end may be the beginning of a stop string.

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// What an incomplete character decodes to.
const REPLACEMENT: char = '\u{fffd}';

/// The text of a completion that is being drawn.
#[derive(Debug, Default)]
pub(super) struct TextStream {
    detokeniser: Detokeniser,
    stops: StopStrings,
    text: String,
    taken: usize,
}

impl TextStream {
    /// An empty text that ends before the first of `stops`.
    pub fn new(stops: &[String]) -> Self {
        TextStream { stops: StopStrings::new(stops), ..TextStream::default() }
    }

    /// Adds a token; `last` gives out what was held back. True if a stop string is complete: nothing
    /// may follow then.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32, last: bool) -> Result<bool> {
        let mut new = self.detokeniser.push(tokenizer, token)?;
        if last {
            new.push_str(&self.detokeniser.finish(tokenizer)?);
        }
        let stopped = self.stops.push(&new, &mut self.text);
        if last && !stopped {
            self.text.push_str(&self.stops.held);
            self.stops.held.clear();
        }
        Ok(stopped)
    }

    /// The text that was given out since the last call.
    pub fn take_new(&mut self) -> String {
        let new = self.text[self.taken..].to_string();
        self.taken = self.text.len();
        new
    }

    /// All text that was given out.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// Decodes tokens one after another.
///
/// Only the last tokens are decoded at each step. The ones before the new ones are their context: a
/// tokenizer may treat the beginning of a text otherwise (many drop its space).
#[derive(Debug, Default)]
struct Detokeniser {
    window: Vec<u32>,
    /// Tokens at the window's beginning whose text was given out before.
    context: usize,
    /// Bytes of the window's text that were given out.
    given: usize,
}

impl Detokeniser {
    fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String> {
        if tokenizer.is_special(token) {
            return Ok(String::new());
        }
        self.window.push(token);
        let text = tokenizer.decode(&self.window, true)?;
        let complete = text.trim_end_matches(REPLACEMENT).len();
        let new = text.get(self.given..complete).unwrap_or_default().to_string();
        self.given = self.given.max(complete);
        if !new.is_empty() && complete == text.len() {
            self.window.drain(..self.context);
            self.context = self.window.len();
            self.given = tokenizer.decode(&self.window, true)?.len();
        }
        Ok(new)
    }

    /// The rest, with replacements for what is no character.
    fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window, true)?;
        Ok(text.get(self.given..).unwrap_or_default().to_string())
    }
}

/// Looks for stop strings in a text that comes in pieces. The first one to be complete counts, the
/// longest if several end at the same place, so that the result does not depend on the pieces.
#[derive(Debug, Default)]
struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far, if a stop string may begin there.
    held: String,
}

impl StopStrings {
    fn new(stops: &[String]) -> Self {
        StopStrings { stops: stops.to_vec(), held: String::new() }
    }

    /// Adds a piece; `out` gets what cannot be part of a stop string. True if one is complete.
    fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if piece.is_empty() {
            return false;
        }
        self.held.push_str(piece);
        let held = &self.held;
        let found = self.stops.iter().filter_map(|stop| Some((held.find(stop.as_str())?, stop.len())));
        if let Some((start, _)) = found.min_by_key(|&(start, length)| (start + length, start)) {
            out.push_str(&held[..start]);
            self.held.clear();
            return true;
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let begins = |&at: &usize| {
            held.is_char_boundary(at) && self.stops.iter().any(|stop| stop.starts_with(&held[at..]))
        };
        let keep = (held.len().saturating_sub(longest)..held.len()).find(begins);
        out.extend(self.held.drain(..keep.unwrap_or(held.len())));
        false
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::tokenizer::TokenizerFacts;

    fn tiny() -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
        Checkpoint::inspect(&path).expect("the fixture").1
    }

    /// Whole pieces with `▁` for spaces and `<0x…>` for bytes, as Llama 2's.
    fn sentencepiece() -> Tokenizer {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"post_processor":null,
            "decoder":{"type":"Sequence","decoders":[
                {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
                {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
            "model":{"type":"BPE","unk_token":null,"byte_fallback":true,"merges":[],"vocab":
                {"<0xE2>":0,"<0x82>":1,"<0xAC>":2,"▁":3,"▁a":4,"b":5}}}"#;
        Tokenizer::from_json(json, TokenizerFacts::default(), Path::new("test")).expect("a tokenizer")
    }

    /// The text, and the pieces in which it was given out.
    fn stream(tokenizer: &Tokenizer, tokens: &[u32], stops: &[&str]) -> (String, Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut stream = TextStream::new(&stops);
        let mut pieces = Vec::new();
        for (index, &token) in tokens.iter().enumerate() {
            let stopped = stream.push(tokenizer, token, index + 1 == tokens.len()).expect("it decodes");
            pieces.push(stream.take_new());
            if stopped {
                return (stream.into_text(), pieces, true);
            }
        }
        (stream.into_text(), pieces, false)
    }

    #[test]
    fn a_character_of_several_tokens_comes_whole() {
        let (tiny, sentencepiece) = (tiny(), sentencepiece());
        let euro = tiny.encode("a€b").expect("it encodes");
        assert_eq!(euro.len(), 5, "the fixture has no token for the sign");
        let expected = ["a", "", "", "€", "b"];
        assert_eq!(stream(&tiny, &euro, &[]).1, expected);
        // The first space is dropped, the second one is not.
        assert_eq!(stream(&sentencepiece, &[4, 0, 1, 2, 4, 5], &[]).1, ["a", "", "", "€", " a", "b"]);
        assert_eq!(stream(&tiny, &euro[..3], &[]).0, "a\u{fffd}", "what stays incomplete is not lost");
    }

    #[test]
    fn a_text_ends_before_its_first_stop_string() {
        let tiny = tiny();
        let cut = |text: &str, stops: &[&str]| {
            let (cut, pieces, stopped) = stream(&tiny, &tiny.encode(text).expect("it encodes"), stops);
            assert_eq!(pieces.concat(), cut);
            (cut, stopped)
        };
        let (yes, no) = (|text: &str| (text.to_string(), true), |text: &str| (text.to_string(), false));
        assert_eq!(cut("one two three", &["two"]), yes("one "));
        assert_eq!(cut("one two three", &["x", "ee", "e t"]), yes("on"));
        assert_eq!(cut("aab", &["ab"]), yes("a"), "a beginning that fails may hold another one");
        assert_eq!(cut("abcd", &["bcd", "abcd"]), yes(""), "the longest of those that end together");
        assert_eq!(cut("abcdef", &["abcdef", "cd"]), yes("ab"), "the first that is complete");
        assert_eq!(cut("end\n", &["\n\n"]), no("end\n"), "half a stop string is text in the end");
        assert_eq!(cut("5 €!", &["€"]), yes("5 "));
        assert_eq!(cut("one", &[]), no("one"));
    }

    #[test]
    fn nothing_of_a_stop_string_is_given_out_before_it_is_known() {
        let mut stops = StopStrings::new(&["\n\nQ:".to_string()]);
        let mut out = String::new();
        let mut given = Vec::new();
        for piece in ["a\n", "b\n", "\n", "Q", " \n\n", "Q:"] {
            let stopped = stops.push(piece, &mut out);
            given.push((out.clone(), stopped));
        }
        let expected = ["a", "a\nb", "a\nb", "a\nb", "a\nb\n\nQ ", "a\nb\n\nQ "];
        assert_eq!(given.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!(given.iter().filter(|(_, stopped)| *stopped).count(), 1);
    }

    proptest! {
        /// Random tokens make all kinds of broken characters.
        #[test]
        fn pieces_make_the_whole_text(tokens in prop::collection::vec(0u32..320, 0..40)) {
            let tiny = tiny();
            prop_assert_eq!(stream(&tiny, &tokens, &[]).0, tiny.decode(&tokens, true).expect("it decodes"));
        }

        /// The text up to the stop string that is complete first, found in the whole text.
        #[test]
        fn stops_do_not_depend_on_the_pieces(
            text in "[ab€]{0,12}", cuts in prop::collection::vec(0usize..12, 0..6),
            stops in prop::collection::vec("[ab€]{1,3}", 0..3),
        ) {
            let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
            let expected = ends.map(|end| &text[..end]).find_map(|seen| {
                let ending = stops.iter().filter(|stop| seen.ends_with(stop.as_str()));
                ending.map(|stop| seen[..seen.len() - stop.len()].to_string()).min_by_key(String::len)
            });
            let mut found = StopStrings::new(&stops);
            let (mut out, mut stopped) = (String::new(), false);
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                if !stopped {
                    stopped = found.push(text.get(pair[0]..pair[1]).unwrap_or_default(), &mut out);
                }
            }
            if !stopped {
                out.push_str(&found.held);
            }
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(out, expected.unwrap_or(text));
        }
    }
}
