//! Strips what does not change an answer: mathematics mode, spacing, emphasis; and writes LaTeX's synonyms alike.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::text::{balanced, literal};

/// What commands mean: nothing, a space, or another sign. Those that are not here stay as they are.
const COMMANDS: &[(&str, &str)] = &[
    ("left", ""),
    ("right", ""),
    ("bigl", ""),
    ("bigr", ""),
    ("big", ""),
    ("Big", ""),
    ("displaystyle", ""),
    ("limits", ""),
    (",", ""),
    ("!", ""),
    (";", " "),
    (":", " "),
    (" ", " "),
    ("quad", " "),
    ("qquad", " "),
    ("(", ""),
    (")", ""),
    ("[", ""),
    ("]", ""),
    ("%", "%"),
    ("$", "$"),
    ("dfrac", "\\frac"),
    ("tfrac", "\\frac"),
    ("cfrac", "\\frac"),
    ("dbinom", "\\binom"),
    ("tbinom", "\\binom"),
    ("cdot", "*"),
    ("times", "*"),
    ("div", "/"),
    ("circ", "∘"),
    ("degree", "∘"),
    ("le", "≤"),
    ("leq", "≤"),
    ("leqslant", "≤"),
    ("leqq", "≤"),
    ("ge", "≥"),
    ("geq", "≥"),
    ("geqslant", "≥"),
    ("geqq", "≥"),
    ("ne", "≠"),
    ("neq", "≠"),
    ("lt", "<"),
    ("gt", ">"),
    ("emptyset", "∅"),
    ("varnothing", "∅"),
    ("infty", "∞"),
    ("cup", "∪"),
    ("cap", "∩"),
    ("in", "∈"),
    ("notin", "∉"),
    ("pm", "±"),
    ("mp", "∓"),
    ("approx", "≈"),
    ("equiv", "≡"),
    ("to", "→"),
    ("rightarrow", "→"),
    ("mid", "|"),
    ("vert", "|"),
    ("lvert", "|"),
    ("rvert", "|"),
    ("lbrace", "\\{"),
    ("rbrace", "\\}"),
    ("ldots", "…"),
    ("cdots", "…"),
    ("dots", "…"),
    ("land", "∧"),
    ("wedge", "∧"),
    ("lor", "∨"),
    ("vee", "∨"),
    ("setminus", "∖"),
    ("backslash", "∖"),
    ("subset", "⊂"),
    ("subseteq", "⊆"),
    ("pi", "π"),
    ("alpha", "α"),
    ("beta", "β"),
    ("gamma", "γ"),
    ("delta", "δ"),
    ("epsilon", "ε"),
    ("varepsilon", "ε"),
    ("theta", "θ"),
    ("lambda", "λ"),
    ("mu", "μ"),
    ("rho", "ρ"),
    ("sigma", "σ"),
    ("tau", "τ"),
    ("phi", "φ"),
    ("varphi", "φ"),
    ("omega", "ω"),
    ("Delta", "Δ"),
    ("Omega", "Ω"),
];

/// Commands around a text that say nothing about its meaning.
const AROUND: &[&str] =
    &["text", "textbf", "textit", "textrm", "mathrm", "mathbf", "mathit", "mbox", "boxed", "operatorname"];

/// Other signs that are written alike.
const SIGNS: &[(&str, &str)] = &[
    ("^{∘}", ""),
    ("^∘", ""),
    ("°", ""),
    ("{,}", ","),
    ("**", ""),
    ("−", "-"),
    ("–", "-"),
    ("×", "*"),
    ("·", "*"),
    ("÷", "/"),
    ("√", "\\sqrt"),
    ("<=", "≤"),
    (">=", "≥"),
    ("!=", "≠"),
    ("≦", "≤"),
    ("≧", "≥"),
    ("\\{\\}", "∅"),
    ("~", " "),
];

/// `$…$` as Markdown has it: no space within, and no digit behind.
static MODE: LazyLock<Regex> = LazyLock::new(|| literal(r"\$([^\s$](?:[^$]*[^\s$])?)\$"));
static HALF_OF_DAY: LazyLock<Regex> = LazyLock::new(|| literal(r"(?i)\b([ap])\.\s?m\b\.?"));
/// 5^{th}, 5th.
static ORDINAL: LazyLock<Regex> =
    LazyLock::new(|| literal(r"^(-?\d[\d,]*)\s*(?:\^\s*\{?\s*)?(?:st|nd|rd|th)\s*\}?$"));
/// 5 (five)
static REMARK: LazyLock<Regex> = LazyLock::new(|| literal(r"^(.*\d.*?)\s+\(([A-Za-z][A-Za-z ,'-]{2,})\)$"));
static ABOUT: LazyLock<Regex> =
    LazyLock::new(|| literal(r"(?i)^(?:about|approximately|exactly|roughly|only|just)\s+"));
/// A base of one sign in braces, as in 101_{2}.
static BASE: LazyLock<Regex> = LazyLock::new(|| literal(r"_\{(\w+)\}"));

/// The text that answers are compared by.
pub(super) fn normalise(answer: &str) -> String {
    let answer = answer.trim();
    let mut text = without_mode(answer);
    text = commands(&text);
    for command in AROUND {
        text = unwrap_command(&text, &format!("\\{command}")).into_owned();
    }
    for (from, to) in SIGNS {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    text = HALF_OF_DAY.replace_all(&text, "${1}m").into_owned();
    text = BASE.replace_all(&text, "_$1").into_owned();
    let trimmed = text
        .trim_matches(|c: char| c.is_whitespace() || matches!(c, '.' | ':' | ';' | '"' | '*' | '`' | ','));
    // A number's leading period is no end mark.
    let leading = text.trim_start().trim_start_matches(['$', ' ']).starts_with('.');
    let mut text = match leading && trimmed.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!(".{trimmed}"),
        false => trimmed.to_string(),
    };
    text = ABOUT.replace(&text, "").into_owned();
    if let Some(found) = REMARK.captures(&text).filter(|found| !found[2].starts_with("mod")) {
        text = found[1].to_string();
    }
    if let Some(found) = ORDINAL.captures(&text) {
        text = found[1].to_string();
    }
    // "(C)" is the option C.
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    match inner.filter(|inner| inner.len() == 1 && inner.chars().all(|c| c.is_ascii_uppercase())) {
        Some(option) => option.to_string(),
        None => text,
    }
}

/// Without the signs of mathematics mode, which are not those of a currency.
fn without_mode(answer: &str) -> String {
    if !answer.contains('$') {
        return answer.to_string();
    }
    // What is escaped is a currency.
    let hidden = answer.replace("\\$", "\u{1}").replace("$$", "$");
    let mut shown = String::new();
    let mut rest = hidden.as_str();
    while let Some(found) = MODE.captures(rest) {
        let (Some(whole), Some(inner)) = (found.get(0), found.get(1)) else { break };
        let price = rest[whole.end()..].starts_with(|c: char| c.is_ascii_digit());
        shown.push_str(&rest[..whole.start()]);
        shown.push_str(if price { whole.as_str() } else { inner.as_str() });
        rest = &rest[whole.end()..];
    }
    shown.push_str(rest);
    shown.replace('\u{1}', "\\$")
}

/// Each command as [`COMMANDS`] has it.
fn commands(text: &str) -> String {
    let mut read = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        read.push_str(&rest[..start]);
        let behind = &rest[start + 1..];
        let letters = behind.bytes().take_while(u8::is_ascii_alphabetic).count();
        let length = if letters > 0 { letters } else { behind.chars().next().map_or(0, char::len_utf8) };
        let name = &behind[..length];
        match COMMANDS.iter().find(|(known, _)| *known == name) {
            Some((_, meaning)) => read.push_str(meaning),
            None => read.push_str(&rest[start..start + 1 + length]),
        }
        rest = &behind[length..];
    }
    read + rest
}

/// Leaves what stands between the command's braces.
fn unwrap_command<'a>(text: &'a str, command: &str) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    let opening = format!("{command}{{");
    while let Some(start) = text.find(&opening) {
        let inside = start + opening.len();
        let Some(length) = balanced(&text[inside..]) else { break };
        let before = &text[..start];
        let after = &text[inside + length + 1..];
        text = Cow::Owned(format!("{before} {}{after}", &text[inside..inside + length]));
    }
    text
}
