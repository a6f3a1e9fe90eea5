//! A random order of what comes one after the other and cannot be held as a whole.

use arriero_buffers::random::Stream;

/// Draws each next item among the `capacity` that are held. All items come exactly once. The order depends on the
/// stream of random numbers alone. It is uniformly random where the buffer holds everything. An item may come
/// arbitrarily late, but at most `capacity - 1` places early.
pub(crate) struct Shuffled<I: Iterator> {
    input: I,
    stream: Stream,
    capacity: usize,
    held: Vec<I::Item>,
    drawn: u64,
    /// The rest, from the back, once the input has ended.
    is_last: bool,
}

impl<I: Iterator> Shuffled<I> {
    pub fn new(input: I, stream: Stream, capacity: usize) -> Self {
        Shuffled { input, stream, capacity: capacity.max(1), held: Vec::new(), drawn: 0, is_last: false }
    }
}

impl<I: Iterator> Iterator for Shuffled<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        while !self.is_last {
            match self.input.next() {
                Some(item) if self.held.len() < self.capacity => self.held.push(item),
                Some(item) => {
                    // Draws from 2^32 on, so that they are not those of the rest.
                    let place = self.stream.below((1 << 32) + self.drawn, self.held.len());
                    self.drawn += 1;
                    return Some(std::mem::replace(&mut self.held[place], item));
                }
                None => {
                    self.is_last = true;
                    self.stream.shuffle(&mut self.held);
                    self.held.reverse();
                }
            }
        }
        self.held.pop()
    }
}
