//! The chunked transfer coding (RFC 9112, 7.1).

use bytes::{Buf, Bytes, BytesMut};

use super::WireError;

/// What may stand beside the data of one body: sizes do not count, extensions and trailers do.
const BESIDE: usize = 16 * 1024;
/// Digits of a chunk's size; 16 fill an `u64`.
const DIGITS: u8 = 16;

/// Takes the chunks of one body apart. Extensions and trailers are checked and dropped: they speak
/// to the next hop, or may be dropped by any (RFC 9110, 6.5.1).
#[derive(Debug, Clone)]
pub struct ChunkReader {
    state: State,
    /// The size so far in [`State::Size`], what is left of the chunk in [`State::Data`].
    left: u64,
    digits: u8,
    beside: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    /// Blanks after the size.
    Blank,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataEnd,
    /// At the beginning of a trailer line or of the last, empty one.
    TrailerStart,
    Trailer,
    TrailerEnd,
    LastEnd,
    Done,
}

impl Default for ChunkReader {
    fn default() -> Self {
        Self {
            state: State::Size,
            left: 0,
            digits: 0,
            beside: 0,
        }
    }
}

impl ChunkReader {
    /// The next data from `input`, never empty; `None` when there is none yet, or when the body
    /// has ended.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
        while !input.is_empty() && self.state != State::Done {
            if self.state == State::Data {
                let here = usize::try_from(self.left).map_or(input.len(), |n| n.min(input.len()));
                let data = input.split_to(here).freeze();
                self.left -= here as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                    self.finish_lines(input)?;
                }
                return Ok(Some(data));
            }
            self.finish_lines(input)?;
        }
        Ok(None)
    }

    /// Whether the last chunk and the trailers have been read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads all that is no data, up to the next data.
    fn finish_lines(&mut self, input: &mut BytesMut) -> Result<(), WireError> {
        let mut taken = 0;
        for &byte in input.iter() {
            if matches!(self.state, State::Data | State::Done) {
                break;
            }
            taken += 1;
            self.state = self.step(byte)?;
        }
        input.advance(taken);
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<State, WireError> {
        use State::{
            Blank, Data, DataCr, DataEnd, Done, Extension, LastEnd, Size, SizeEnd, Trailer,
            TrailerEnd, TrailerStart,
        };
        let next = match (self.state, byte) {
            (Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.digits < DIGITS => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                self.digits += 1;
                Size
            }
            (Size, _) if self.digits == 0 => return Err(WireError::Chunk),
            (Size | Blank | Extension, b'\r') => SizeEnd,
            (Size | Blank, b' ' | b'\t') => self.beside(Blank)?,
            (Size | Blank, b';') => self.beside(Extension)?,
            (Extension, b'\t' | b' '..=b'~' | 0x80..) => self.beside(Extension)?,
            (SizeEnd, b'\n') => {
                self.digits = 0;
                if self.left == 0 { TrailerStart } else { Data }
            }
            (DataCr, b'\r') => DataEnd,
            (DataEnd, b'\n') => Size,
            (TrailerStart, b'\r') => LastEnd,
            (TrailerStart | Trailer, b'\t' | b' '..=b'~' | 0x80..) => self.beside(Trailer)?,
            (Trailer, b'\r') => TrailerEnd,
            (TrailerEnd, b'\n') => TrailerStart,
            (LastEnd, b'\n') => Done,
            _ => return Err(WireError::Chunk),
        };
        Ok(next)
    }

    fn beside(&mut self, next: State) -> Result<State, WireError> {
        self.beside += 1;
        if self.beside > BESIDE {
            return Err(WireError::Chunk);
        }
        Ok(next)
    }
}
