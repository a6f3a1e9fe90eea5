use super::*;

fn same(expected: &str, found: &str) -> bool {
    equivalent(expected, found, 1e-9)
}

#[test]
fn equal_answers_are_equal_in_either_direction() {
    for (a, b) in [
        ("80", "80.0"),
        ("80", "$80"),
        ("80", "80 dollars"),
        ("$80", "80.00 dollars"),
        ("1234567", "1,234,567"),
        ("1234567.5", "1{,}234{,}567.50"),
        ("1234", "1\\,234"),
        ("-5", "−5"),
        ("-5", "-$5"),
        ("0.5", "1/2"),
        ("0.5", "\\frac{1}{2}"),
        ("0.5", "\\dfrac12"),
        ("0.5", ".5"),
        ("0.5", "50%"),
        ("50", "50\\%"),
        ("50%", "50 percent"),
        ("1.5", "1 1/2"),
        ("-1.5", "-1\\frac{1}{2}"),
        ("2/4", "\\frac{1}{2}"),
        ("\\frac{\\sqrt{3}}{2}", "\\sqrt{3}/2"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("2", "\\sqrt[3]{8}"),
        ("3√2", "\\sqrt{18}"),
        ("2^{10}", "1024"),
        ("2^-1", "0.5"),
        ("1.5*10^3", "1500"),
        ("1.5e3", "1500"),
        ("2\\pi", "2π"),
        ("\\pi/2", "0.5\\pi"),
        ("80 cm", "80"),
        ("80cm", "80 cm"),
        ("80 cm^2", "80 \\text{ cm}^2"),
        ("3 hours", "3 hour"),
        ("90^\\circ", "90"),
        ("x = 5", "5"),
        ("2x+1", "1 + 2x"),
        ("(x+1)^2", "x^2+2x+1"),
        ("xy", "yx"),
        ("(1, 2)", "(1,\\frac{4}{2})"),
        ("[0,1)", "[0, 1)"),
        ("\\{1,2\\}", "\\{2,1\\}"),
        ("1, 2", "2, 1"),
        ("(C)", "C"),
        ("\\text{Yes}", "yes"),
        ("**18**", "18"),
        ("$\\frac{1}{2}$", "0.5"),
        ("\\left(1, 2\\right)", "(1,2)"),
    ] {
        assert!(same(a, b), "{a} = {b}");
        assert!(same(b, a), "{b} = {a}");
    }
}

#[test]
fn other_answers_are_not() {
    for (a, b) in [
        ("80", "81"),
        ("80", "-80"),
        ("80", "8"),
        ("80", "800"),
        ("80", "80.5"),
        ("1234567", "1234568"),
        ("1,234", "1,235"),
        ("1,2345", "12345"),
        ("0.5", "5%"),
        ("50%", "50.1%"),
        ("1 1/2", "11/2"),
        ("1/2", "2/1"),
        ("0.333", "1/3"),
        ("\\sqrt{2}", "1.414"),
        ("2\\sqrt{2}", "\\sqrt{2}"),
        ("80 cm", "80 m"),
        ("80 cents", "$80"),
        ("x", "X"),
        ("x", "y"),
        ("2x", "2"),
        ("2xy", "2"),
        ("2x+1", "2x-1"),
        ("(1, 2)", "(2, 1)"),
        ("(0,1)", "[0,1]"),
        ("1, 2", "1, 2, 3"),
        ("1, 1", "1, 2"),
        ("C", "B"),
        ("yes", "no"),
        ("80", ""),
        ("", ""),
        ("1/0", "2/0"),
        ("80", "eighty"),
    ] {
        assert!(!same(a, b), "{a} ≠ {b}");
        assert!(!same(b, a), "{b} ≠ {a}");
    }
    assert!(equivalent("1/3", "0.333", 1e-3) && !equivalent("80", "81", 0.5));
}

#[test]
fn hostile_answers_end() {
    let deep = format!("{}1{}", "(".repeat(400), ")".repeat(50));
    let roots = "\\sqrt".repeat(80);
    let powers = "2^".repeat(200) + "2";
    let minus = "-".repeat(400) + "1";
    for text in
        [deep.as_str(), &roots, &powers, &"\\text{".repeat(60), &minus, "9^9^9^9", "\\frac", "1e", "²"]
    {
        assert!(!same("7", text), "{text}");
    }
    let huge = "1".repeat(10_000_000);
    assert!(!same("7", &huge) && same(&huge, &huge));
}

#[test]
fn the_final_answer_is_found() {
    for (text, expected) in [
        ("so 3+4=7\n#### 7", "7"),
        ("#### 1,234 apples\nbye", "1,234 apples"),
        ("a \\boxed{1} then \\boxed{\\frac{1}{\\sqrt{2}}}.", "\\frac{1}{\\sqrt{2}}"),
        ("#### 3\n\\boxed{4}", "4"),
        ("\\boxed{4}\n#### 3", "3"),
        ("\\boxed 5$", "5"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("The answer is 80.", "80"),
        ("The final answer is: **1,234**", "1,234"),
        ("Answer: 40 + 40 = 80 because 2 * 40.", "80 because 2 * 40"),
        ("The answer is 3. It is not 4.", "3"),
        ("The answer is definitely 12 eggs", "12"),
        ("The answer is (B).", "(B)"),
        ("Therefore, the total is 80 in all.", "80"),
        ("So she has $18 left.", "$18"),
        ("It costs 3.50.", "3.50"),
        ("<think>#### 3</think><answer>5</answer>", "5"),
    ] {
        assert_eq!(final_answer(text).as_deref(), Some(expected), "{text}");
    }
    for text in ["", "no number", "\\boxed{12", "\\boxed{}", "####", "3 \\boxed{"] {
        assert_eq!(final_answer(text), None, "{text}");
    }
}
