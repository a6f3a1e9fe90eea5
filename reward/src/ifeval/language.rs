//! Which language a text is in, by whatlang, where IFEval's checker has langdetect.
//!
//! Both compare character trigrams; they differ on short and on mixed texts. As langdetect does, only
//! the first 10,000 characters are read, only languages that langdetect knows are considered, and a
//! text without letters is in every language. whatlang does not know Swahili.

use std::sync::LazyLock;

use whatlang::{Detector, Lang};

/// Characters that are read, as many as langdetect reads.
const MOST_CHARS: usize = 10_000;

/// The languages of both libraries, with their ISO 639-1 codes.
const LANGUAGES: &[(&str, Lang)] = &[
    ("af", Lang::Afr),
    ("ar", Lang::Ara),
    ("bg", Lang::Bul),
    ("bn", Lang::Ben),
    ("ca", Lang::Cat),
    ("cs", Lang::Ces),
    ("cy", Lang::Cym),
    ("da", Lang::Dan),
    ("de", Lang::Deu),
    ("el", Lang::Ell),
    ("en", Lang::Eng),
    ("es", Lang::Spa),
    ("et", Lang::Est),
    ("fa", Lang::Pes),
    ("fi", Lang::Fin),
    ("fr", Lang::Fra),
    ("gu", Lang::Guj),
    ("he", Lang::Heb),
    ("hi", Lang::Hin),
    ("hr", Lang::Hrv),
    ("hu", Lang::Hun),
    ("id", Lang::Ind),
    ("it", Lang::Ita),
    ("ja", Lang::Jpn),
    ("kn", Lang::Kan),
    ("ko", Lang::Kor),
    ("lt", Lang::Lit),
    ("lv", Lang::Lav),
    ("mk", Lang::Mkd),
    ("ml", Lang::Mal),
    ("mr", Lang::Mar),
    ("ne", Lang::Nep),
    ("nl", Lang::Nld),
    ("no", Lang::Nob),
    ("pa", Lang::Pan),
    ("pl", Lang::Pol),
    ("pt", Lang::Por),
    ("ro", Lang::Ron),
    ("ru", Lang::Rus),
    ("sk", Lang::Slk),
    ("sl", Lang::Slv),
    ("sv", Lang::Swe),
    ("ta", Lang::Tam),
    ("te", Lang::Tel),
    ("th", Lang::Tha),
    ("tl", Lang::Tgl),
    ("tr", Lang::Tur),
    ("uk", Lang::Ukr),
    ("ur", Lang::Urd),
    ("vi", Lang::Vie),
    ("zh", Lang::Cmn),
    ("zh-cn", Lang::Cmn),
    ("zh-tw", Lang::Cmn),
];

static DETECTOR: LazyLock<Detector> =
    LazyLock::new(|| Detector::with_allowlist(LANGUAGES.iter().map(|&(_, language)| language).collect()));

/// The language of a code.
///
/// # Errors
/// If it cannot be told.
pub(super) fn from_code(code: &str) -> Result<Lang, String> {
    let known = LANGUAGES.iter().find(|(known, _)| known.eq_ignore_ascii_case(code.trim()));
    known.map(|&(_, language)| language).ok_or_else(|| {
        let codes: Vec<&str> = LANGUAGES.iter().map(|&(code, _)| code).collect();
        format!("language is {code:?}, which cannot be told; known are {}", codes.join(", "))
    })
}

/// True if the text is in the language, or has nothing to tell it from.
pub(super) fn is_in(text: &str, language: Lang) -> bool {
    let end = text.char_indices().nth(MOST_CHARS).map_or(text.len(), |(index, _)| index);
    DETECTOR.detect_lang(&text[..end]).is_none_or(|found| found == language)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_languages_are_told_apart() {
        for (text, code) in [
            ("The weather is very nice today and we are going to the park.", "en"),
            ("THE WEATHER IS VERY NICE TODAY AND WE ARE GOING TO THE PARK.", "en"),
            ("Das Wetter ist heute sehr schön und wir gehen in den Park.", "de"),
            ("आज मौसम बहुत अच्छा है और हम पार्क जा रहे हैं।", "hi"),
            ("今日は天気がとても良いので公園に行きます。", "ja"),
        ] {
            assert!(is_in(text, from_code(code).expect("known")), "{text}");
            assert!(!is_in(text, Lang::Fra), "{text}");
        }
        assert!(is_in("1, 2, 3!", Lang::Fra), "nothing tells the language");
        assert!(from_code("sw").expect_err("whatlang lacks it").contains("\"sw\""));
    }
}
