//! Reads an expression into a number: decimals, fractions, powers, roots, the usual functions, simple LaTeX.
//!
//! Grammar: sums of products of signed powers; a product may lack its sign (`2x`, `3\sqrt{2}`), and
//! a whole number before a fraction is a mixed number (`1\frac{1}{2}`, `1 1/2`).

use super::number::Number;

/// Brackets within brackets that are still read.
const MOST_DEPTH: usize = 50;
/// The greatest number whose factorial is computed.
const MOST_FACTORIAL: i64 = 500;

/// The value at three points; without variables all three are the same. `None` if the text is no
/// expression, or has no finite value.
pub(super) fn evaluate(text: &str) -> Option<[Number; 3]> {
    if text.is_empty() {
        return None;
    }
    let chars: Vec<char> = text.chars().collect();
    let value = |point| {
        let mut reader = Reader { chars: &chars, at: 0, depth: 0, point };
        let value = reader.mixed_or_sum()?;
        reader.space();
        (reader.at == chars.len() && value.is_finite()).then_some(value)
    };
    Some([value(0)?, value(1)?, value(2)?])
}

/// A function of one number.
type Function = fn(f64) -> f64;

const FUNCTIONS: &[(&str, Function)] = &[
    ("\\arcsin", f64::asin),
    ("\\arccos", f64::acos),
    ("\\arctan", f64::atan),
    ("\\sin", f64::sin),
    ("\\cos", f64::cos),
    ("\\tan", f64::tan),
    ("\\ln", f64::ln),
    ("\\log", f64::log10),
    ("\\exp", f64::exp),
];

struct Reader<'a> {
    chars: &'a [char],
    at: usize,
    depth: usize,
    point: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn eat(&mut self, wanted: char) -> bool {
        self.space();
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn eat_command(&mut self, name: &str) -> bool {
        self.space();
        let found = self.chars[self.at..].iter().copied().take(name.len()).eq(name.chars());
        self.at += if found { name.len() } else { 0 };
        found
    }

    /// "1 1/2", or anything else.
    fn mixed_or_sum(&mut self) -> Option<Number> {
        let begin = self.at;
        if let Some(value) = self.mixed() {
            return Some(value);
        }
        self.at = begin;
        self.sum()
    }

    fn mixed(&mut self) -> Option<Number> {
        let negative = self.eat('-');
        let whole = self.digits()?;
        let gap = self.at;
        self.space();
        if gap == self.at {
            return None;
        }
        let numerator = self.digits()?;
        if !self.eat('/') {
            return None;
        }
        let denominator = self.digits()?;
        self.space();
        let value = whole.plus(&numerator.over(&denominator));
        (self.at == self.chars.len()).then(|| if negative { value.negated() } else { value })
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return None;
        }
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn sum(&mut self) -> Option<Number> {
        self.deeper(|reader| {
            let mut value = reader.product()?;
            loop {
                if reader.eat('+') {
                    value = value.plus(&reader.product()?);
                } else if reader.eat('-') {
                    value = value.minus(&reader.product()?);
                } else {
                    return Some(value);
                }
            }
        })
    }

    fn product(&mut self) -> Option<Number> {
        let mut value = self.signed()?;
        loop {
            if self.eat('*') {
                value = value.times(&self.signed()?);
            } else if self.eat('/') {
                value = value.over(&self.signed()?);
            } else if self.peek().is_some_and(|c| is_variable(c) || matches!(c, '(' | '\\' | 'π')) {
                value = value.times(&self.power()?);
            } else {
                return Some(value);
            }
        }
    }

    fn signed(&mut self) -> Option<Number> {
        let mut negative = false;
        loop {
            if self.eat('-') {
                negative = !negative;
            } else if !self.eat('+') {
                let value = self.power()?;
                return Some(if negative { value.negated() } else { value });
            }
        }
    }

    fn power(&mut self) -> Option<Number> {
        let mut base = self.atom()?;
        while self.eat('!') {
            base = factorial(&base)?;
        }
        if !self.eat('^') {
            return Some(base);
        }
        let exponent = self.deeper(|reader| match reader.peek() {
            Some('{') => reader.atom(),
            _ => reader.signed(),
        })?;
        Some(base.power(&exponent))
    }

    fn atom(&mut self) -> Option<Number> {
        self.space();
        let c = self.peek()?;
        match c {
            '(' => self.bracket('(', ')'),
            '{' => self.bracket('{', '}'),
            '|' => self.bracket('|', '|').map(|value| value.absolute()),
            'π' => {
                self.at += 1;
                Some(Number::Real(std::f64::consts::PI))
            }
            '\\' => self.command(),
            _ if c.is_ascii_digit() || c == '.' => {
                let value = self.number()?;
                // 1\frac{1}{2}
                let mixed = value.to_whole().is_some()
                    && self.chars[self.at..].starts_with(&['\\', 'f', 'r', 'a', 'c']);
                if mixed { Some(value.plus(&self.command()?)) } else { Some(value) }
            }
            _ if is_variable(c) => {
                self.at += 1;
                // Points that no simple relation between letters hits by chance.
                let place = f64::from(u32::from(c)) * 0.618_033_988_75 + 0.1;
                let part = (place * (self.point as f64 + 1.0)).fract() * 2.0 + 0.25 + self.point as f64;
                Some(Number::fraction((part * 10_007.0) as i64, 10_007))
            }
            _ => None,
        }
    }

    fn bracket(&mut self, open: char, end: char) -> Option<Number> {
        self.eat(open).then_some(())?;
        let value = self.sum()?;
        self.eat(end).then_some(value)
    }

    fn command(&mut self) -> Option<Number> {
        if self.eat_command("\\frac") {
            let numerator = self.argument()?;
            return Some(numerator.over(&self.argument()?));
        }
        if self.eat_command("\\binom") {
            let (n, k) = (self.argument()?, self.argument()?);
            let rest = factorial(&k)?.times(&factorial(&n.minus(&k))?);
            return Some(factorial(&n)?.over(&rest));
        }
        if self.eat_command("\\sqrt") {
            let degree = if self.peek() == Some('[') { self.bracket('[', ']')? } else { Number::whole(2) };
            return Some(self.argument()?.root(&degree));
        }
        let &(name, function) = FUNCTIONS.iter().find(|(name, _)| self.eat_command(name))?;
        let base = if name == "\\log" && self.eat('_') { Some(self.argument()?) } else { None };
        let power = if self.eat('^') { Some(self.argument()?) } else { None };
        let value = self.deeper(Self::power)?.to_f64();
        let value = match base {
            Some(base) => value.ln() / base.to_f64().ln(),
            None => function(value),
        };
        let value = Number::Real(value);
        Some(power.map_or(value.clone(), |power| value.power(&power)))
    }

    /// A command's argument: braces, or one digit or letter.
    fn argument(&mut self) -> Option<Number> {
        self.space();
        let c = self.peek()?;
        self.deeper(|reader| match c.to_digit(10) {
            Some(digit) => {
                reader.at += 1;
                Some(Number::whole(digit.into()))
            }
            None => reader.atom(),
        })
    }

    fn run_of_digits(&mut self) -> String {
        let digits: String = self.chars[self.at..].iter().take_while(|c| c.is_ascii_digit()).collect();
        self.at += digits.len();
        digits
    }

    /// Digits alone.
    fn digits(&mut self) -> Option<Number> {
        self.space();
        let digits = self.run_of_digits();
        if digits.is_empty() { None } else { Number::decimal(&digits, "", 0) }
    }

    /// A number with separators between its thousands, a decimal part and an exponent, or some.
    fn number(&mut self) -> Option<Number> {
        let digit = |reader: &Self, ahead: usize| {
            reader.chars.get(reader.at + ahead).is_some_and(char::is_ascii_digit)
        };
        let mut whole = String::new();
        let mut group = 0;
        let mut separated = false;
        while let Some(c) = self.peek() {
            let thousands = (1..=3).all(|ahead| digit(self, ahead)) && !digit(self, 4);
            let first = !separated && (1..=3).contains(&group);
            if c.is_ascii_digit() {
                whole.push(c);
                group += 1;
                self.at += 1;
            } else if matches!(c, ',' | ' ') && thousands && (first || (separated && group == 3)) {
                separated = true;
                group = 0;
                self.at += 1;
            } else {
                break;
            }
        }
        let mut decimals = String::new();
        if self.peek() == Some('.') {
            self.at += 1;
            decimals = self.run_of_digits();
            if self.eat_command("\\overline{") {
                let period = self.run_of_digits();
                return self.eat('}').then(|| Number::repeating(&whole, &decimals, &period)).flatten();
            }
        }
        if whole.is_empty() && decimals.is_empty() {
            return None;
        }
        let sign = usize::from(matches!(self.chars.get(self.at + 1), Some('+' | '-')));
        let mut exponent = 0;
        if matches!(self.peek(), Some('e' | 'E')) && digit(self, 1 + sign) {
            let negative = self.chars[self.at + 1] == '-';
            self.at += 1 + sign;
            exponent = self.run_of_digits().parse::<i64>().ok()?;
            exponent = if negative { -exponent } else { exponent };
        }
        Number::decimal(&whole, &decimals, exponent)
    }
}

/// A letter, Latin or Greek.
fn is_variable(c: char) -> bool {
    c.is_ascii_alphabetic() || ('α'..='ω').contains(&c) || matches!(c, 'Δ' | 'Ω')
}

fn factorial(number: &Number) -> Option<Number> {
    let most = number.to_whole().filter(|most| (0..=MOST_FACTORIAL).contains(most))?;
    Some((2..=most).fold(Number::whole(1), |product, factor| product.times(&Number::whole(factor))))
}
