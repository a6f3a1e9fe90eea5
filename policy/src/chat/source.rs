//! A template's source as the engine takes it: what transformers' extensions add to Jinja is put into its terms.
//!
//! - `{% generation %} … {% endgeneration %}` becomes a `{% call %}` of [`GENERATION`], as transformers' extension makes
//!   it one: whitespace control, lines and scopes stay as they are.
//! - `'…' % x` behind a literal text becomes a call of [`PERCENT`]; the engine knows `%` between numbers only.
//!
//! What is written as text, as a comment or between `{% raw %}` and `{% endraw %}` is left alone.

use std::ops::Range;

/// The function that marks what the model has written.
pub(super) const GENERATION: &str = "__generation__";
/// The function that fills a text's `%` in.
pub(super) const PERCENT: &str = "__percent__";

/// The most operators, commas and brackets of one tag. The engine's compiler goes one call deeper with each of them.
const MOST_OPERATORS: usize = 2_000;

/// A source that the engine can take.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub text: String,
    /// Whether the model's own words are marked in it.
    pub has_marks: bool,
}

/// Rewrites a template.
///
/// # Errors
/// The line of a tag that is too long to be compiled, and why.
pub(super) fn rewrite(template: &str) -> Result<Source, (usize, String)> {
    let mut source = Source { text: String::with_capacity(template.len()), has_marks: false };
    let mut rest = 0;
    let mut is_raw = false;
    while let Some(open) = template[rest..].find("{").map(|at| rest + at) {
        source.text += &template[rest..open];
        let kind = template[open + 1..].chars().next();
        let end = match kind {
            Some('#') if !is_raw => template[open..].find("#}").map(|at| open + at + 2),
            Some('%') => tag_end(template, open + 2, "%}"),
            Some('{') if !is_raw => tag_end(template, open + 2, "}}"),
            _ => None,
        };
        let Some(end) = end else {
            source.text.push('{');
            rest = open + 1;
            continue;
        };
        let tag = &template[open..end];
        if kind == Some('#') {
            source.text += tag;
        } else {
            let (before, words, after) = parts(tag);
            match words {
                "raw" if kind == Some('%') => is_raw = true,
                "endraw" if kind == Some('%') => is_raw = false,
                _ => {}
            }
            match words {
                _ if is_raw => source.text += tag,
                "generation" | "endgeneration" if kind == Some('%') => {
                    source.has_marks = true;
                    let call = if words == "generation" {
                        format!("call {GENERATION}()")
                    } else {
                        "endcall".to_string()
                    };
                    source.text += &format!("{before}{call}{after}");
                }
                _ => {
                    let tokens = tokens(tag);
                    let operators = tokens.iter().filter(|token| is_operator(&tag[(*token).clone()])).count();
                    if operators > MOST_OPERATORS {
                        let line = template[..open].matches('\n').count() + 1;
                        let cause =
                            format!("a tag has {operators} operators, and {MOST_OPERATORS} is the most");
                        return Err((line, cause));
                    }
                    source.text += &filled(tag, &tokens);
                }
            }
        }
        rest = end;
    }
    source.text += &template[rest..];
    Ok(source)
}

/// Where a tag ends, its closing marks included, if it does: texts in it may hold these marks.
fn tag_end(template: &str, from: usize, close: &str) -> Option<usize> {
    let (bytes, mut at) = (template.as_bytes(), from);
    // `}}` may close an object within `{{ … }}`.
    let mut depth = 0usize;
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = text_end(bytes, at)?,
            b'{' => {
                depth += 1;
                at += 1;
            }
            b'}' if depth > 0 => {
                depth -= 1;
                at += 1;
            }
            _ if bytes[at..].starts_with(close.as_bytes()) => return Some(at + 2),
            _ => at += 1,
        }
    }
    None
}

/// The place behind a text in quotes that begins at `at`.
fn text_end(bytes: &[u8], at: usize) -> Option<usize> {
    let (quote, mut next) = (bytes[at], at + 1);
    loop {
        match *bytes.get(next)? {
            b'\\' => next += 2,
            byte if byte == quote => return Some(next + 1),
            _ => next += 1,
        }
    }
}

/// The opening marks of a tag with the space behind them, its words, and the rest.
fn parts(tag: &str) -> (&str, &str, &str) {
    let inner = tag[2..tag.len() - 2].trim_start_matches(['-', '+']);
    let from = tag.len() - 2 - inner.len();
    let inner = inner.trim_end_matches(['-', '+']);
    let words = inner.trim();
    let start = from + (inner.len() - inner.trim_start().len());
    (&tag[..start], words, &tag[start + words.len()..])
}

fn is_operator(token: &str) -> bool {
    !token.starts_with(['\'', '"'])
        && !token.starts_with(|first: char| first.is_alphanumeric() || first == '_')
        || matches!(token, "and" | "or" | "not" | "if" | "is" | "in")
}

/// Where the tokens of a tag stand: texts, words and numbers, and everything else character by character.
fn tokens(tag: &str) -> Vec<Range<usize>> {
    let bytes = tag.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 2;
    while at < tag.len().saturating_sub(2) {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
        let end = match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'\'' | b'"' => text_end(bytes, at).unwrap_or(tag.len()).min(tag.len()),
            byte if is_word(byte) => {
                bytes[at..].iter().position(|&byte| !is_word(byte)).map_or(tag.len(), |length| at + length)
            }
            _ => at + 1,
        };
        tokens.push(at..end);
        at = end;
    }
    tokens
}

/// A tag in which `'…' % x` is a call.
fn filled(tag: &str, tokens: &[Range<usize>]) -> String {
    let text = |token: usize| tokens.get(token).map_or("", |range| &tag[range.clone()]);
    let is_text = |token: usize| text(token).starts_with(['\'', '"']);
    let mut written = String::new();
    let (mut copied, mut token) = (0, 0);
    while token < tokens.len() {
        if is_text(token)
            && text(token + 1) == "%"
            && let Some(end) = operand_end(tag, tokens, token + 2)
        {
            let (left, right) = (&tokens[token], tokens[token + 2].start..tokens[end - 1].end);
            written += &tag[copied..left.start];
            written += &format!("{PERCENT}({}, {})", &tag[left.clone()], &tag[right.clone()]);
            copied = right.end;
            token = end;
        } else {
            token += 1;
        }
    }
    written + &tag[copied..]
}

/// The token behind an operand that begins at `token`: a name, a number, a text or a bracket, with what is asked of it.
fn operand_end(tag: &str, tokens: &[Range<usize>], token: usize) -> Option<usize> {
    let text = |token: usize| tokens.get(token).map_or("", |range| &tag[range.clone()]);
    let mut next = token;
    if matches!(text(next), "-" | "+") {
        next += 1;
    }
    let bracket_end = |mut at: usize| -> Option<usize> {
        let mut depth = 0usize;
        loop {
            match text(at) {
                "" => return None,
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 {
                return Some(at);
            }
        }
    };
    next = match text(next) {
        "(" | "[" | "{" => bracket_end(next)?,
        word if word.starts_with(|first: char| first.is_alphanumeric() || "_'\"".contains(first)) => next + 1,
        _ => return None,
    };
    loop {
        next = match text(next) {
            "." | "|" => next + 2,
            "(" | "[" => bracket_end(next)?,
            _ => return Some(next.min(tokens.len())),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(template: &str) -> String {
        rewrite(template).expect("it can be rewritten").text
    }

    #[test]
    fn generation_becomes_a_call_and_keeps_its_whitespace_control() {
        let source =
            rewrite("a{%- generation -%}\n x{% endgeneration +%}{# {% generation %} #}").expect("rewritten");
        let expected = "a{%- call __generation__() -%}\n x{% endcall +%}{# {% generation %} #}";
        assert_eq!(source, Source { text: expected.to_string(), has_marks: true });
        let raw = "{% raw %}{% generation %}{% endraw %}{{ '{% generation %}' }}{ }{{ {'a': {}} }}";
        assert_eq!(rewrite(raw).expect("kept"), Source { text: raw.to_string(), has_marks: false });
    }

    #[test]
    fn a_percent_sign_behind_a_text_takes_its_operand_and_no_more() {
        assert_eq!(rewritten("{{ '%s' % x ~ 'b' }}"), "{{ __percent__('%s', x) ~ 'b' }}");
        assert_eq!(rewritten("{{ '%s-%d' % (a, b[1]) }}"), "{{ __percent__('%s-%d', (a, b[1])) }}");
        assert_eq!(
            rewritten("{% set y = \"%s\" % m.role|upper + z %}"),
            "{% set y = __percent__(\"%s\", m.role|upper) + z %}"
        );
        assert_eq!(rewritten("{{ 7 % 2 }}{{ 'a' }}"), "{{ 7 % 2 }}{{ 'a' }}");
    }

    #[test]
    fn a_tag_too_long_to_compile_is_refused_with_its_line() {
        let long = format!("\n{{{{ 1{} }}}}", "+1".repeat(200_000));
        let (line, cause) = rewrite(&long).expect_err("refused");
        assert_eq!(line, 2);
        assert!(cause.contains("200000 operators"), "{cause}");
    }
}
