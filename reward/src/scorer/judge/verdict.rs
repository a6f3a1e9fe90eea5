//! What a judge says of two completions.

/// Who is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Winner {
    /// The first.
    A,
    /// The second.
    B,
    /// Neither.
    Tie,
}

impl Winner {
    /// The same where the two are shown in the other order.
    pub(super) fn swapped(self) -> Self {
        match self {
            Winner::A => Winner::B,
            Winner::B => Winner::A,
            Winner::Tie => Winner::Tie,
        }
    }
}

/// What a judge says of two completions, shown in both orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairVerdict {
    /// The winner when `a` was shown first.
    pub a_first: Winner,
    /// The winner when `b` was shown first. `A` is `a` here as well.
    pub b_first: Winner,
}

impl PairVerdict {
    /// Who wins in both orders; else it is a tie.
    pub fn winner(self) -> Winner {
        if self.is_consistent() { self.a_first } else { Winner::Tie }
    }

    /// False if the order changed the verdict.
    pub fn is_consistent(self) -> bool {
        self.a_first == self.b_first
    }

    /// True if the completion that was shown first won both times: a bias for the first place.
    pub fn prefers_first(self) -> bool {
        (self.a_first, self.b_first) == (Winner::A, Winner::B)
    }

    /// True if the completion that was shown last won both times.
    pub fn prefers_last(self) -> bool {
        (self.a_first, self.b_first) == (Winner::B, Winner::A)
    }

    /// 1 if `a` wins, 0 if `b` does, ½ for a tie.
    pub fn points(self) -> f64 {
        match self.winner() {
            Winner::A => 1.0,
            Winner::B => 0.0,
            Winner::Tie => 0.5,
        }
    }
}
