//! Which language a text is in, by the profiles of langdetect, which IFEval's checker asks.
//!
//! langdetect (Nakatani Shuyo's language-detection) multiplies the probabilities of a text's n-grams of one to three
//! characters in each of 55 languages. It draws n-grams at random until one language is almost certain, so that it can
//! differ from itself; here all n-grams count, which is what its draws tend to. As it does, this reads the first 10,000
//! characters, leaves Latin letters out of texts in another script, and takes a text without letters for any language.

use std::collections::HashMap;
use std::sync::LazyLock;

use langdetect_rs::detector_factory::DetectorFactory;
use langdetect_rs::utils::ngram::NGram;
use regex::Regex;
use serde::Deserialize;

/// Characters that are read, as many as langdetect reads.
const MOST_CHARS: usize = 10_000;
/// What langdetect adds to each probability: its smoothing of 0.5 over a base frequency of 10,000.
const SMOOTHING: f64 = 0.5 / 10_000.0;

/// How often n-grams are in texts of one language.
#[derive(Deserialize)]
struct Profile {
    name: String,
    freq: HashMap<String, u64>,
    /// How many n-grams of one, two and three characters there were.
    n_words: Vec<u64>,
}

/// All languages' profiles.
struct Profiles {
    codes: Vec<String>,
    /// For each n-gram the languages that have it, with how much more likely it is there than where it is unknown, as
    /// a logarithm.
    grams: HashMap<String, Vec<(usize, f64)>>,
}

static PROFILES: LazyLock<Profiles> = LazyLock::new(|| {
    let mut profiles = Profiles { codes: Vec::new(), grams: HashMap::new() };
    for text in DetectorFactory::get_default_profiles_json() {
        let profile: Profile = serde_json::from_str(text).expect("langdetect's own profiles are JSON");
        let language = profiles.codes.len();
        for (gram, count) in profile.freq {
            let length = gram.chars().count();
            let Some(&all) = length.checked_sub(1).and_then(|index| profile.n_words.get(index)) else {
                continue;
            };
            let likelier = (count as f64 / all as f64 / SMOOTHING).ln_1p();
            profiles.grams.entry(gram).or_default().push((language, likelier));
        }
        profiles.codes.push(profile.name);
    }
    profiles
});

static ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
    let url = "https?://[-_.?&~;+=/#0-9A-Za-z]{1,2076}";
    let mail = "[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}";
    Regex::new(&format!("{url}|{mail}")).expect("a pattern of ours compiles")
});

/// A language that can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Language(String);

impl Language {
    /// English.
    pub fn english() -> Self {
        Language("en".to_string())
    }

    /// The language of a code, such as "sw". Chinese is one language here, in whichever script.
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn from_code(code: &str) -> Result<Self, String> {
        let small = code.trim().to_lowercase();
        let codes = &PROFILES.codes;
        if small == "zh" || codes.contains(&small) {
            return Ok(Language(small));
        }
        Err(format!("language is {code:?}, which cannot be told; known are {}", codes.join(", ")))
    }

    fn is(&self, code: &str) -> bool {
        self.0 == code || self.0.starts_with("zh") && code.starts_with("zh")
    }
}

/// True if the text is in the language, or has nothing to tell it from.
pub(super) fn is_in(text: &str, language: &Language) -> bool {
    detect(text).is_none_or(|found| language.is(found))
}

/// The code of the likeliest language; none for a text without letters.
fn detect(text: &str) -> Option<&'static str> {
    let text = NGram::normalize_vi(&ADDRESS.replace_all(text, " "));
    let mut read = String::new();
    for c in text.chars().take(MOST_CHARS) {
        if c != ' ' || !read.ends_with(' ') {
            read.push(c);
        }
    }
    let mut scores = vec![0.0; PROFILES.codes.len()];
    let mut known = 0_usize;
    let mut grams = NGram::new();
    for c in without_latin(&read).chars() {
        grams.add_char(c);
        if grams.capitalword {
            continue;
        }
        // Its last one, two and three characters.
        for (start, _) in grams.grams.char_indices().rev().take(NGram::N_GRAM) {
            let gram = &grams.grams[start..];
            if gram == " " {
                continue;
            }
            for &(language, likelier) in PROFILES.grams.get(gram).into_iter().flatten() {
                scores[language] += likelier;
                known += 1;
            }
        }
    }
    if known == 0 {
        return None;
    }
    let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]))?;
    PROFILES.codes.get(best).map(String::as_str)
}

/// Without Latin letters, where there are fewer than half as many as of another script.
fn without_latin(text: &str) -> String {
    let is_latin = |c: char| ('A'..='z').contains(&c);
    let is_other = |c: char| c >= '\u{300}' && !('\u{1e00}'..='\u{1eff}').contains(&c);
    let count = |is: &dyn Fn(char) -> bool| text.chars().filter(|&c| is(c)).count();
    match count(&is_latin) * 2 < count(&is_other) {
        true => text.chars().filter(|&c| !is_latin(c)).collect(),
        false => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(code: &str) -> Language {
        Language::from_code(code).expect("known")
    }

    #[test]
    fn languages_are_told_apart() {
        for (text, code) in [
            ("The weather is very nice today and we are going to the park.", "en"),
            ("THE WEATHER IS VERY NICE TODAY AND WE ARE GOING TO THE PARK.", "en"),
            ("Das Wetter ist heute sehr schön und wir gehen in den Park.", "de"),
            ("Hali ya hewa ni nzuri sana leo na tunakwenda kwenye bustani.", "sw"),
            ("Cimiladu aad bay u fiican tahay maanta waxaana aadeynaa beerta.", "so"),
            ("Moti është shumë i bukur sot dhe ne po shkojmë në park.", "sq"),
            ("आज मौसम बहुत अच्छा है और हम पार्क जा रहे हैं।", "hi"),
            ("今日は天気がとても良いので公園に行きます。", "ja"),
            ("今天天气很好，我们去公园。", "zh"),
            ("ಇಂದು ಹವಾಮಾನ ತುಂಬಾ ಚೆನ್ನಾಗಿದೆ. OK", "kn"),
        ] {
            assert!(is_in(text, &language(code)), "{text}: {:?}", detect(text));
            assert!(!is_in(text, &language("fr")), "{text}");
        }
        assert!(is_in("1, 2, 3!", &language("fr")), "nothing tells the language");
        assert!(
            is_in("https://example.org/the/and/of me@example.org", &language("fr")),
            "addresses do not count"
        );
        assert!(Language::from_code("tlh").expect_err("nobody has it").contains("\"tlh\""));
    }

    #[test]
    fn every_code_of_ifeval_is_known() {
        for code in
            "en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi ne sw kn mr gu pa ml fi"
                .split(' ')
        {
            language(code);
        }
    }
}
