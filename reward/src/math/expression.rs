//! Reads an expression into a number: decimals, fractions, powers, roots, simple LaTeX.
//!
//! Grammar: sums of products of signed powers; a product may lack its sign (`2x`, `3\sqrt{2}`), and
//! a whole number before a fraction is a mixed number (`1\frac{1}{2}`, `1 1/2`).

/// Brackets within brackets that are still read.
const MOST_DEPTH: usize = 50;

/// The value at three points; without variables all three are the same. `None` if the text is no
/// expression, or has no finite value.
pub(super) fn evaluate(text: &str) -> Option<[f64; 3]> {
    if text.is_empty() {
        return None;
    }
    let mut values = [0.0; 3];
    for (point, value) in values.iter_mut().enumerate() {
        let chars: Vec<char> = text.chars().collect();
        let mut reader = Reader { chars: &chars, at: 0, depth: 0, point };
        *value = reader.mixed_or_sum()?;
        reader.space();
        if reader.at != chars.len() || !value.is_finite() {
            return None;
        }
    }
    Some(values)
}

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
    fn mixed_or_sum(&mut self) -> Option<f64> {
        let begin = self.at;
        if let Some(value) = self.mixed() {
            return Some(value);
        }
        self.at = begin;
        self.sum()
    }

    fn mixed(&mut self) -> Option<f64> {
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
        let value = whole + numerator / denominator;
        (self.at == self.chars.len()).then_some(if negative { -value } else { value })
    }

    fn sum(&mut self) -> Option<f64> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return None;
        }
        let mut value = self.product()?;
        loop {
            if self.eat('+') {
                value += self.product()?;
            } else if self.eat('-') {
                value -= self.product()?;
            } else {
                self.depth -= 1;
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.signed()?;
        loop {
            if self.eat('*') {
                value *= self.signed()?;
            } else if self.eat('/') {
                value /= self.signed()?;
            } else if self.peek().is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, '(' | '\\' | 'π')) {
                value *= self.power()?;
            } else {
                return Some(value);
            }
        }
    }

    fn signed(&mut self) -> Option<f64> {
        let mut sign = 1.0;
        loop {
            if self.eat('-') {
                sign = -sign;
            } else if !self.eat('+') {
                return Some(sign * self.power()?);
            }
        }
    }

    fn power(&mut self) -> Option<f64> {
        let base = self.atom()?;
        if !self.eat('^') {
            return Some(base);
        }
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return None;
        }
        let exponent = if self.peek() == Some('{') { self.atom()? } else { self.signed()? };
        self.depth -= 1;
        Some(base.powf(exponent))
    }

    fn atom(&mut self) -> Option<f64> {
        self.space();
        let c = self.peek()?;
        match c {
            '(' => self.bracket('(', ')'),
            '{' => self.bracket('{', '}'),
            'π' => {
                self.at += 1;
                Some(std::f64::consts::PI)
            }
            '\\' => self.command(),
            _ if c.is_ascii_digit() || c == '.' => {
                let value = self.number()?;
                // 1\frac{1}{2}
                let mixed =
                    value.fract() == 0.0 && self.chars[self.at..].starts_with(&['\\', 'f', 'r', 'a', 'c']);
                if mixed { Some(value + self.command()?) } else { Some(value) }
            }
            _ if c.is_ascii_alphabetic() => {
                self.at += 1;
                // Points that no simple relation between letters hits by chance.
                let place = f64::from(u32::from(c)) * 0.618_033_988_75 + 0.1;
                Some((place * (self.point as f64 + 1.0)).fract() * 2.0 + 0.25 + self.point as f64)
            }
            _ => None,
        }
    }

    fn bracket(&mut self, open: char, end: char) -> Option<f64> {
        self.eat(open).then_some(())?;
        let value = self.sum()?;
        self.eat(end).then_some(value)
    }

    fn command(&mut self) -> Option<f64> {
        if self.eat_command("\\frac") {
            let numerator = self.argument()?;
            return Some(numerator / self.argument()?);
        }
        self.eat_command("\\sqrt").then_some(())?;
        let degree = if self.peek() == Some('[') { self.bracket('[', ']')? } else { 2.0 };
        let radicand = self.argument()?;
        match degree {
            2.0 => Some(radicand.sqrt()),
            3.0 => Some(radicand.cbrt()),
            _ => Some(radicand.powf(1.0 / degree)),
        }
    }

    /// A command's argument: braces, or one digit or letter.
    fn argument(&mut self) -> Option<f64> {
        self.space();
        let c = self.peek()?;
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return None;
        }
        let value = match c.to_digit(10) {
            Some(digit) => {
                self.at += 1;
                f64::from(digit)
            }
            None => self.atom()?,
        };
        self.depth -= 1;
        Some(value)
    }

    /// Digits alone.
    fn digits(&mut self) -> Option<f64> {
        self.space();
        let digits: String = self.chars[self.at..].iter().take_while(|c| c.is_ascii_digit()).collect();
        self.at += digits.len();
        digits.parse().ok()
    }

    /// A number with separators between its thousands, a decimal part and an exponent, or some.
    fn number(&mut self) -> Option<f64> {
        let digit = |reader: &Self, ahead: usize| {
            reader.chars.get(reader.at + ahead).is_some_and(char::is_ascii_digit)
        };
        let mut text = String::new();
        let mut group = 0;
        let mut separated = false;
        while let Some(c) = self.peek() {
            let thousands = (1..=3).all(|ahead| digit(self, ahead)) && !digit(self, 4);
            let first = !separated && (1..=3).contains(&group);
            if c.is_ascii_digit() {
                text.push(c);
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
        if self.peek() == Some('.') {
            text.push('.');
            self.at += 1;
            while let Some(c) = self.peek().filter(char::is_ascii_digit) {
                text.push(c);
                self.at += 1;
            }
        }
        let sign = usize::from(matches!(self.chars.get(self.at + 1), Some('+' | '-')));
        if matches!(self.peek(), Some('e' | 'E')) && digit(self, 1 + sign) {
            text.extend(&self.chars[self.at..=self.at + sign]);
            self.at += 1 + sign;
            while let Some(c) = self.peek().filter(char::is_ascii_digit) {
                text.push(c);
                self.at += 1;
            }
        }
        text.parse().ok()
    }
}
