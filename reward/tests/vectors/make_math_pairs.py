"""Writes math_pairs.jsonl: pairs of answers, and whether the Python package math-verify takes them for equal.

    python -m venv V && V/bin/pip install math-verify==0.9.0
    V/bin/python make_math_pairs.py GSM8K_TRAIN.jsonl > math_pairs.jsonl

The answers are the final ones of GSM8K's training rows (a file of rows with `answer`), and answers in the manner of
MATH's, each altered: written in another way, or changed. A line is [gold, answer, equal].
"""

import json
import logging
import random
import re
import sys

from math_verify import parse, verify

logging.disable(logging.CRITICAL)
draw = random.Random(20)

# In the manner of MATH's answers, with other ways to write each, and others that are not it.
MATH = [
    (r"\frac{1}{2}", [r"\dfrac{1}{2}", r"\tfrac12", "1/2", "0.5", ".5", r"\frac{2}{4}", r"50\%"], [r"\frac{1}{3}", "2", "0.05", "-0.5"]),
    (r"\frac{3}{4}", ["0.75", r"\frac{6}{8}", "3/4", r"\dfrac{3}{4}", r"\left(\frac{3}{4}\right)"], [r"\frac{4}{3}", "0.7", "3"]),
    (r"-\frac{5}{3}", [r"\frac{-5}{3}", r"-5/3", r"\frac{5}{-3}", r"-\dfrac{10}{6}"], [r"\frac{5}{3}", r"-\frac{3}{5}", "-1.67"]),
    (r"\frac{7}{9}", [r"0.\overline{7}", "7/9", r"\frac{14}{18}"], ["0.77", "0.8", r"\frac{9}{7}"]),
    (r"2\frac{1}{3}", [r"\frac{7}{3}", "7/3"], [r"\frac{2}{3}", "2.3"]),
    (r"\sqrt{2}", [r"\sqrt2", "2^{1/2}", r"\frac{2}{\sqrt{2}}"], ["2", r"\sqrt{3}", "1.4"]),
    (r"2\sqrt{3}", [r"\sqrt{12}", r"2\cdot\sqrt{3}", r"2 \sqrt 3", r"\frac{6}{\sqrt{3}}"], [r"3\sqrt{2}", r"\sqrt{3}", r"2\sqrt{5}"]),
    (r"\frac{\sqrt{3}}{2}", [r"\sqrt{3}/2", r"\frac{1}{2}\sqrt{3}", r"\sqrt{\frac{3}{4}}"], [r"\frac{\sqrt{2}}{2}", r"\frac{3}{2}"]),
    (r"\frac{1+\sqrt{5}}{2}", [r"\frac{\sqrt{5}+1}{2}", r"0.5+\frac{\sqrt5}{2}"], [r"\frac{1-\sqrt{5}}{2}", r"\frac{\sqrt{5}}{2}"]),
    (r"3+2\sqrt{2}", [r"2\sqrt{2}+3", r"(1+\sqrt{2})^2", r"3+\sqrt{8}"], [r"3-2\sqrt{2}", r"2+3\sqrt{2}"]),
    (r"\sqrt[3]{5}", [r"5^{1/3}", r"5^{\frac13}"], [r"\sqrt{5}", r"\sqrt[4]{5}"]),
    (r"\pi", [r"1\pi", r"\frac{2\pi}{2}"], ["3", r"2\pi", "3.2"]),
    (r"12\pi", [r"12 \pi", r"12\cdot\pi", r"\pi\cdot 12", r"24\cdot\frac{\pi}{2}"], ["12", r"13\pi", r"12\pi^2"]),
    (r"\frac{\pi}{6}", [r"\pi/6", r"\frac{1}{6}\pi", r"\dfrac{2\pi}{12}"], [r"\frac{\pi}{3}", r"\frac{6}{\pi}"]),
    (r"9\pi - 18", [r"9(\pi-2)", r"-18+9\pi"], [r"9\pi+18", r"18-9\pi"]),
    ("2^{10}", ["1024", "2^5 \\cdot 2^5", "4^5"], ["1025", "2^{11}", "20"]),
    ("2^{64}", ["18446744073709551616"], ["18446744073709551617", "2^{63}"]),
    ("3^{40}", ["12157665459056928801"], ["12157665459056928802", "3^{40}+1"]),
    ("9007199254740993", ["9{,}007{,}199{,}254{,}740{,}993"], ["9007199254740992"]),
    ("10^{-3}", ["0.001", r"\frac{1}{1000}"], ["0.01", "1000"]),
    (r"1.5 \times 10^{3}", ["1500", r"15 \cdot 10^2"], ["150", r"1.5\times 10^4"]),
    ("5!", ["120"], ["24", "5"]),
    (r"\binom{5}{2}", ["10"], ["20", "5"]),
    (r"\log_2 8", ["3"], ["8", "2"]),
    ("x^2+2x+1", ["(x+1)^2", "1+2x+x^2", r"x^{2}+2x+1", "x(x+2)+1"], ["x^2-2x+1", "x^2+2x", "(x-1)^2"]),
    ("2x+3", ["3+2x", r"2\cdot x+3", "2(x+1)+1"], ["2x-3", "3x+2", "2x"]),
    ("6x^2-x-2", ["(2x+1)(3x-2)", "-2-x+6x^2"], ["6x^2+x-2", "(2x-1)(3x+2)"]),
    (r"\frac{x+1}{x-1}", [r"(x+1)/(x-1)", r"\frac{1+x}{-1+x}"], [r"\frac{x-1}{x+1}", "x"]),
    (r"\frac{1}{x}+\frac{1}{y}", [r"\frac{x+y}{xy}"], [r"\frac{1}{x+y}", r"\frac{2}{x+y}"]),
    ("ab+ac", ["a(b+c)", "ca+ba"], ["ab+bc", "abc"]),
    (r"\frac{n(n+1)}{2}", [r"\frac{n^2+n}{2}", r"\frac12 n(n+1)"], [r"\frac{n(n-1)}{2}", "n(n+1)"]),
    ("x = 5", ["5", "x=5", "5.0"], ["x=6", "y=5", "-5"]),
    ("y = 2x + 1", ["2x+1", "y=1+2x"], ["y=2x-1", "y=x+2"]),
    ("x = 1, y = 2", ["y=2, x=1", r"x=1 \text{ and } y=2"], ["x=2, y=1"]),
    ("a=1, b=2", ["a=1,\\ b=2"], ["a=2, b=1", "a=1, b=3"]),
    (r"1 \text{ and } 2", ["1,2", "2, 1", r"\{1,2\}", r"1 \text{ or } 2"], ["1,3", "1", "12"]),
    (r"x = 1 \text{ or } x = 2", ["1, 2", "x=2, x=1"], ["1, 3", "x=1"]),
    (r"\pm 2", ["2,-2", "-2, 2", r"\pm2"], ["2", r"\pm 3"]),
    ("(1,2)", ["(1, 2)", r"\left(1,2\right)", r"(1,\frac{4}{2})", "(1.0,2)"], ["(2,1)", "(1,3)", "(1,2,3)"]),
    (r"(x,y)=(1,2)", ["(1,2)"], ["(2,1)"]),
    (r"\left(\frac{1}{2},-3\right)", ["(0.5,-3)", r"(\frac12, -3)"], ["(0.5,3)", r"(-3,\frac12)"]),
    ("(3,-1,4)", ["(3, -1, 4)"], ["(3,1,4)", "(3,-1)", "(-1,3,4)"]),
    ("[0,1]", [r"\left[0,1\right]", "[0, 1]", r"x \in [0,1]", r"0 \le x \le 1"], ["(0,1)", "[0,1)", "[0,2]", "0<x<1"]),
    ("(0,\\infty)", [r"(0,+\infty)", "x>0", r"x \in (0,\infty)"], [r"[0,\infty)", "x<0", r"(1,\infty)"]),
    (r"(-\infty,-1)\cup(1,\infty)", [r"(-\infty, -1) \cup (1, \infty)", r"\left(-\infty,-1\right)\cup\left(1,\infty\right)", r"(1,\infty)\cup(-\infty,-1)"], [r"(-\infty,-1]\cup(1,\infty)", r"(-\infty,1)"]),
    (r"x \leq 2", [r"x \le 2", r"x\leqslant 2", r"2 \geq x"], [r"x < 2", r"x \geq 2", r"x \leq 3"]),
    ("x > 3", [r"3 < x", "x>3"], [r"x \ge 3", "x<3"]),
    (r"-1 < x \leq 4", [r"-1<x\le4", "(-1,4]"], [r"-1 \leq x \leq 4", "(-1,4)"]),
    (r"\{1,2,3\}", ["1,2,3", r"\{3,2,1\}", r"\{1, 2, 3\}"], [r"\{1,2\}", r"\{1,2,4\}"]),
    (r"\{3\}", ["3"], ["4"]),
    (r"\emptyset", [r"\varnothing"], ["0"]),
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", [r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}"], [r"\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}", r"\begin{pmatrix} 1 & 0 \end{pmatrix}"]),
    (r"\begin{pmatrix} \frac{1}{2} \\ -3 \end{pmatrix}", [r"\begin{pmatrix}0.5\\-3\end{pmatrix}", r"\begin{pmatrix} 1/2 \\ -3 \end{pmatrix}"], [r"\begin{pmatrix} \frac{1}{2} \\ 3 \end{pmatrix}"]),
    (r"25\%", ["0.25", "25", r"\frac{1}{4}"], ["2.5", r"26\%"]),
    (r"90^\circ", ["90", r"90^{\circ}", r"90 \text{ degrees}"], ["80", "9"]),
    (r"10\text{ cm}", ["10", r"10 \text{ centimeters}", r"10\,\text{cm}"], ["11", "100"]),
    (r"2.5\text{ sq. units}", ["2.5", r"2.5\text{ square units}"], ["25", "2"]),
    (r"5^{\text{th}}", ["5"], ["6", "15"]),
    (r"\$32,348", ["32348", r"32,348", r"\$32348.00"], ["32349", "32"]),
    (r"\$4.50", ["4.5", "4.50", r"\frac{9}{2}"], ["4.05", "450"]),
    (r"\text{Tuesday}", ["Tuesday", r"\text{tuesday}"], [r"\text{Monday}"]),
    (r"\text{(C)}", ["C", "(C)"], ["D", r"\text{(B)}"]),
    (r"\text{even}", ["even", r"\text{ even }"], ["odd"]),
    ("y^2 = 4x", ["4x = y^2", r"y^{2}=4 x"], ["y^2=2x", "x^2=4y"]),
    ("x^2+y^2=25", ["y^2+x^2=25", "x^2+y^2-25=0"], ["x^2+y^2=5", "x^2-y^2=25"]),
    ("1,234,567", ["1234567", r"1{,}234{,}567", r"1\,234\,567"], ["1234568", "123456"]),
    ("-7", ["-7.0", r"-\frac{14}{2}", "(-7)"], ["7", "-8"]),
    ("0", ["0.0", r"\frac{0}{5}", "-0"], ["1", "-1"]),
    ("3.14", ["3.140", r"\frac{157}{50}"], ["3.1", "3.15", r"\pi"]),
    ("0.125", [r"\frac{1}{8}", r"12.5\%", ".125"], ["0.0125", "0.12"]),
    (r"|x-3|", [r"\left|x-3\right|", r"\lvert x-3\rvert"], ["x-3", "|x+3|"]),
    (r"\sin x", [r"\sin(x)", r"\sin{x}"], [r"\cos x", r"\sin 2x"]),
    (r"e^{2}", ["e^2", r"e\cdot e"], ["e", "2e"]),
    (r"\ln 2", [r"\ln(2)", r"-\ln\frac{1}{2}"], [r"\ln 3", "2"]),
]


def groups(digits):
    return f"{int(digits):,}"


def of_gsm8k(gold):
    """Other ways to write a number, and other numbers."""
    plain = gold.replace(",", "")
    number = int(plain)
    ways = [
        f"{plain}.00", groups(plain), groups(plain).replace(",", "{,}"), rf"\${plain}", rf"{plain}\text{{ apples}}",
        rf"\frac{{{2 * number}}}{{2}}", f"x={plain}", f"({plain})", rf"\text{{{plain}}}", f"{plain} ", f"{plain}.",
        rf"{plain}\ \text{{dollars}}", rf"{number + 3} - 3", rf"\frac{{{3 * number}}}{{3}}",
    ]
    others = [
        str(number + 1), str(number - 1), str(-number - 1), str(10 * number + 1), f"{plain}.5", f"{plain}.01",
        rf"\frac{{{plain}}}{{7}}+1", f"{plain}, {number + 1}", f"{plain}x", rf"\sqrt{{{plain}}}+\frac{{1}}{{3}}",
        plain[::-1] + "3", f"1{plain}", rf"({plain}, {plain})", rf"\frac{{{number + 1}}}{{1}}",
    ]
    return ways, others


def spaced(text):
    if re.search(r"\d(\\,|\{,\}|,)\d{3}|\\,", text):
        return text  # Separators of thousands.
    return re.sub(r"([=+,])", r" \1 ", text)


def all_pairs(rows):
    golds = sorted({row.rsplit("####", 1)[1].strip() for row in rows})
    golds = [gold for gold in golds if re.fullmatch(r"-?[\d,]+", gold)]
    for gold in draw.sample(golds, 60):
        ways, others = of_gsm8k(gold)
        for answer in draw.sample(ways, 6) + draw.sample(others, 6):
            yield gold, answer
    for gold, ways, others in MATH:
        for answer in [gold, *ways, *others]:
            yield gold, answer
        # The other way round, and answers against each other.
        for answer in ways:
            yield answer, gold
            yield answer, draw.choice(others)
            yield spaced(answer), gold
    # Answers of other questions.
    for _ in range(250):
        (one, _, _), (other, _, _) = draw.sample(MATH, 2)
        yield one, other


def equal(gold, answer):
    return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


def main():
    with open(sys.argv[1]) as file:
        rows = [json.loads(line)["answer"] for line in file]
    for gold, answer in sorted(set(all_pairs(rows))):
        print(json.dumps([gold, answer, equal(gold, answer)], ensure_ascii=False))


main()
