//! The lines of a file as it is downloaded, in pieces of any size.

use bytes::Bytes;

/// Cuts what is downloaded into lines. Holds no more than the line that has begun.
///
/// Line breaks may be LF or CRLF, and a byte order mark at the start and empty lines are passed over. [`passed`](Self::passed)
/// is where reading can go on after a crash.
///
/// ```
/// use batchyard::remote::{Line, LineReader};
/// let mut lines = LineReader::new(1 << 20);
/// lines.feed(b"{\"a\":1}\r\n{\"b\"");
/// assert_eq!(lines.next_line(), Some(Line::Whole("{\"a\":1}".into())));
/// assert_eq!(lines.next_line(), None);
/// assert_eq!(lines.passed(), 9);
/// lines.feed(b":2}");
/// assert_eq!(lines.finish(), Some(Line::Last("{\"b\":2}".into())));
/// ```
#[derive(Clone, Debug)]
pub struct LineReader {
    buffer: Vec<u8>,
    /// Where the next line begins in the buffer, and up to where it is known to have no break.
    start: usize,
    scanned: usize,
    /// Bytes of the file that are still to be passed over.
    skip: u64,
    /// Bytes of a line that was too long to keep.
    too_long: u64,
    passed: u64,
    max_line_bytes: usize,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its break.
    Whole(Bytes),
    /// What is behind the last break: a line, unless it was cut off.
    Last(Bytes),
    /// A line of so many bytes, which were not kept.
    TooLong(u64),
}

impl LineReader {
    /// A reader of a file from its start; longer lines are passed over and told.
    pub fn new(max_line_bytes: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            skip: 0,
            too_long: 0,
            passed: 0,
            max_line_bytes,
        }
    }

    /// Goes on behind what [`passed`](Self::passed) said; what is fed begins there.
    #[must_use]
    pub fn from(mut self, passed: u64) -> Self {
        self.passed = passed;
        self
    }

    /// Goes on behind what [`passed`](Self::passed) said; what is fed is the file from its start again.
    #[must_use]
    pub fn skipping(mut self, passed: u64) -> Self {
        self.skip = passed;
        self.from(passed)
    }

    /// Adds what came next. Take all lines before the next piece, so that only one line is held.
    pub fn feed(&mut self, piece: &[u8]) {
        let skip = usize::try_from(self.skip)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        self.skip -= skip as u64;
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(&piece[skip..]);
    }

    /// The next line that is there as a whole.
    pub fn next_line(&mut self) -> Option<Line> {
        loop {
            let rest = &self.buffer[self.scanned..];
            let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
                self.scanned = self.buffer.len();
                let begun = self.buffer.len() - self.start;
                if self.too_long > 0 || begun > self.max_line_bytes {
                    self.too_long += begun as u64;
                    self.buffer.clear();
                    (self.start, self.scanned) = (0, 0);
                }
                return None;
            };
            let end = self.scanned + at;
            let line = self.start..end;
            self.passed += self.too_long + (end + 1 - self.start) as u64;
            (self.start, self.scanned) = (end + 1, end + 1);
            let before = std::mem::take(&mut self.too_long);
            if before > 0 || line.len() > self.max_line_bytes {
                return Some(Line::TooLong(before + line.len() as u64));
            }
            let line = trim(&self.buffer[line]);
            if !line.is_empty() {
                return Some(Line::Whole(Bytes::copy_from_slice(line)));
            }
        }
    }

    /// What is behind the last line break, when nothing more comes.
    pub fn finish(&mut self) -> Option<Line> {
        if let Some(line) = self.next_line() {
            return Some(line);
        }
        if self.too_long > 0 {
            return Some(Line::TooLong(std::mem::take(&mut self.too_long)));
        }
        let rest = self.buffer.split_off(self.start);
        self.buffer.clear();
        (self.start, self.scanned) = (0, 0);
        let line = trim(&rest);
        (!line.is_empty()).then(|| Line::Last(Bytes::copy_from_slice(line)))
    }

    /// How many bytes of the file lie before the next line.
    pub fn passed(&self) -> u64 {
        self.passed
    }
}

fn trim(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(line)
        .trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &[u8], piece: usize, most: usize) -> Vec<Line> {
        let mut lines = LineReader::new(most);
        let mut found = Vec::new();
        for piece in file.chunks(piece) {
            lines.feed(piece);
            while let Some(line) = lines.next_line() {
                found.push(line);
            }
        }
        while let Some(line) = lines.finish() {
            found.push(line);
        }
        found
    }

    #[test]
    fn pieces_of_any_size_make_the_same_lines() {
        let file =
            b"\xef\xbb\xbf{\"a\":1}\r\n\r\n  \n{\"bb\":22}\n0123456789012345678901234\n{\"c\"";
        let whole = |text: &'static str| Line::Whole(text.into());
        let want = vec![
            whole("{\"a\":1}"),
            whole("{\"bb\":22}"),
            Line::TooLong(25),
            Line::Last("{\"c\"".into()),
        ];
        for piece in 1..=file.len() {
            assert_eq!(read(file, piece, 20), want, "in pieces of {piece}");
        }
        assert_eq!(read(b"", 1, 20), []);
        assert_eq!(read(b"\n\r\n", 1, 20), []);
        assert_eq!(read(&[b'x'; 30], 7, 20), [Line::TooLong(30)]);
    }

    #[test]
    fn reading_goes_on_where_it_was() {
        let file = b"one\ntwo\r\n\nthree\n0123456789\nfour";
        for stop in 0..6 {
            let mut lines = LineReader::new(9);
            lines.feed(file);
            let mut found: Vec<_> = (0..stop).filter_map(|_| lines.next_line()).collect();
            let passed = lines.passed();
            let at = usize::try_from(passed).unwrap();
            let (mut ranged, mut again) = (
                LineReader::new(9).from(passed),
                LineReader::new(9).skipping(passed),
            );
            ranged.feed(&file[at..]);
            for piece in file.chunks(3) {
                again.feed(piece);
            }
            let mut rest = Vec::new();
            while let Some(line) = ranged.finish() {
                assert_eq!(again.finish(), Some(line.clone()));
                rest.push(line);
            }
            assert_eq!(again.finish(), None);
            found.extend(rest);
            assert_eq!(found, read(file, file.len(), 9), "stopped after {stop}");
        }
    }
}
