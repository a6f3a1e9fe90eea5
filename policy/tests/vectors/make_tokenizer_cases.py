"""What transformers makes of many odd texts with SmolLM2's tokenizer: writes tokenizer_cases.json beside this file.

    pip install torch==2.13.0 transformers==5.13.0 gguf==0.19.0
    python make_tokenizer_cases.py --model DIR

DIR is a Hugging Face directory; README.md says how to make it from the GGUF file. transformers' conversion
leaves out that SmolLM2 splits digits off one by one before the merges. Where that gives other tokens, a case
has them in `ids_digits` too.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

TEXTS = [
    # Plain
    "", "a", "Hello, world!", "The quick brown fox jumps over the lazy dog.",
    # Apostrophes
    "I'm, you're, he's, we'll, they'd, I've, don't; IT'S WE'LL; rock 'n' roll, the dogs' bowls",
    "It\u2019s \u2018quoted\u2019 and \u201cquoted\u201d \u2014 isn\u2019t it\u2026",
    # Accents and combining marks
    "Crème brûlée, naïve façade, Ångström, Łódź, İstanbul, smørrebrød, Straße",
    "e\u0301 n\u0303 a\u030a\u0323 Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d",
    "\u00e9 is not e\u0301; \ufb01 is not fi; \u212b is not \u00c5",
    # Scripts
    "日本語のテキスト、漢字とかなカナ。", "你好，世界！今天天气怎么样？", "안녕하세요 세계 \u1112\u1161\u11ab",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣", "שָׁלוֹם עולם", "Привет, мир! Ещё раз.", "Γειά σου Κόσμε", "नमस्ते दुनिया १२३",
    "สวัสดีชาวโลก", "\u202eright to left\u202c and \u200fmarks\u200e",
    # Emoji
    "😀😃😄", "👩‍👩‍👧‍👦 family, 👩🏽‍💻 coder, 👍🏿👍🏻", "🏳️‍🌈 🇫🇷🇯🇵 1️⃣ ❤️ ☺︎",
    # Symbols
    "∀x∈ℝ: ∃y ≥ x² ⇒ ∑ᵢ₌₁ⁿ i = n(n+1)/2 ≈ ∞ ± √2·π", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒜𝟙𝟚 𐍈 𠜎",
    "\ud7ff\ue000\uf8ff\ufffd\ufffe\uffff\U00010000\U0010ffff", "½ ⅓ Ⅷ ① ٣ ３ ²", "© ® ™ € £ ¥ § ¶ ° «»",
    # Digits
    "0", "1234567890", "3.14159 -42 1,000,000.00 1e-10 0xDEADBEEF 007", "9" * 40,
    "In 2024, 15% of 3rd-graders; v1.2.3; 12:30; 2+2=4; a1b2c3", "1  2   3    4\n\n5\t6\r\n7", "   42",
    # White space
    " ", "  ", "   \n", "\n", "\n\n\n\n", "\t\t\t", "\r\n\r\n", "  leading", "trailing   ", "a  b   c    d     e",
    "line one\r\nline two\rline three\nline four\n", " \n \n\t \n x", "x" + " " * 50 + "y",
    "no\u00a0break\u00a0\u00a0space \u2003em\u2003 \u3000ideographic\u3000",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffbom", "\ufeffBOM first", "\u2028line\u2029paragraph\u0085nel\x0bvt\x0cff",
    # Control characters
    "\x00", "bell\x07 esc\x1b[31mred\x1b[0m nul\x00 del\x7f c1\x80\x9f",
    # Code
    "def f(x):\n\tif x:\n\t\treturn [i**2 for i in range(10)]\n\n\n# done\n",
    "fn main() {\n    let s: &'static str = \"hi\\n\";\n    println!(\"{}\", s);\n}\n",
    "for (int i = 0; i < n; ++i) {\n  a[i] |= b[i] << 3; // shift\n}",
    "<div class=\"a b\">\n  <p>&nbsp;x</p>\n</div>", "SELECT * FROM t WHERE a='b' AND c>=10;\n-- end",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"\\u00e9\"}}",
    "const f = async (x) => { await g(`${x}`) ?? null }; // \u2713", "all:\n\tcc -O2 -o $@ $^ && ./a.out | grep -v '^#' > /dev/null 2>&1",
    # Special tokens
    "<|im_start|>user\nhi<|im_end|>", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>",
    "a <|endoftext|> b<|im_end|><|im_end|>  c", "<|im_", "<|im_start| >", "<|IM_START|>", "<<|im_start|>>", "|im_end|> <| im_end |>",
    "<repo_name>x/y<file_sep>main.rs\n<filename><jupyter_code>1+1<empty_output>",
    # Other
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", "abcdefghij" * 30, "a" * 100,
    "https://example.org/path?q=1&r=%20#frag user.name+tag@mail.example", "!!!???...,,,;;;---___***", "camelCaseAndSnake_case_AndSCREAMING_CASE",
    "▁sentence▁piece <0x41> Ġbyte ĊĠ Ã©",
]
CHATS = [
    [{"role": "user", "content": "Hi!"}],
    [{"role": "system", "content": "You answer in rhymes."}, {"role": "user", "content": "What is rain?"}],
    [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And twice that?"},
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another one."},
        {"role": "assistant", "content": "Green."},
        {"role": "user", "content": "Thanks! Both in French, please: «bleu»…?"},
    ],
    [{"role": "system", "content": ""}, {"role": "user", "content": "  padded\n\n\ttext  \n"}],
    [{"role": "user", "content": "What does \"{{ x }}\" & <|im_end|> mean in '{% raw %}'?"}],
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face directory of SmolLM2-135M-Instruct")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    digits = json.loads(tokenizer.backend_tokenizer.to_str())
    split = {"type": "Digits", "individual_digits": True}
    digits["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, digits["pre_tokenizer"]]}
    digits = Tokenizer.from_str(json.dumps(digits))

    cases = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        decode = lambda skip: tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        case = {"text": text, "ids": ids, "decoded": decode(False), "decoded_skip": decode(True)}
        ids_digits = digits.encode(text, add_special_tokens=False).ids
        if ids_digits != ids:
            case["ids_digits"] = ids_digits
        if case["decoded"] != text:
            print(f"decodes to {case['decoded']!r}, not {text!r}")
        cases.append(case)
    chats = []
    for messages in CHATS:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        chats.append({"messages": messages, "rendered": rendered})

    lines = lambda values: ",\n".join(json.dumps(value, separators=(",", ":")) for value in values)
    text = f'{{"cases":[\n{lines(cases)}\n],\n"chats":[\n{lines(chats)}\n]}}\n'
    Path(__file__).with_name("tokenizer_cases.json").write_text(text, encoding="ascii")
    print(len(cases), "cases,", sum("ids_digits" in case for case in cases), "with ids_digits")


if __name__ == "__main__":
    main()
