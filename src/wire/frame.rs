//! Frames: a length of four bytes, little endian, followed by a body of that many bytes.
//!
//! The length is checked against the limit before memory is allocated for the body, and the buffer
//! grows only as bytes arrive. So a length without a body costs no memory.

use super::packet::Packet;
use bytes::Bytes;
use std::ops::Range;

/// Bytes of a frame's head.
pub(crate) const HEAD: usize = 4;
/// The largest body, in bytes, unless the pool says otherwise. Encoding stops there with an error,
/// so a runaway argument cannot take all memory.
pub(crate) const BODY_MAX_DEFAULT: usize = 1 << 30;
/// A first reading: enough for a few small frames. Doubled when one reading fills it.
const CAPACITY_MIN: usize = 4 << 10;
/// Readings of small frames never take more than this.
const CAPACITY_MAX: usize = 64 << 10;

/// A frame that says it is longer than allowed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) len: usize,
    pub(crate) limit: usize,
}

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a frame of {} bytes, where {} is the limit", self.len, self.limit)
    }
}

/// Appends a frame to `out`; `write` appends its body.
pub(crate) fn write(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = begin(out);
    write(out);
    finish(out, start);
}

/// Begins a frame at the end of `out`; gives the place to [`finish`] it. Where nothing can fail in
/// between, [`write()`] does both.
pub(crate) fn begin(out: &mut Vec<u8>) -> usize {
    out.extend([0; HEAD]);
    out.len()
}

/// Ends the frame that was begun: writes its length.
pub(crate) fn finish(out: &mut [u8], start: usize) {
    let len = u32::try_from(out.len() - start).expect("the limit of a body is below 4 GiB");
    out[start - HEAD..start].copy_from_slice(&len.to_le_bytes());
}

/// The body of the frame that begins there among frames that are each padded to a multiple of 8
/// bytes, and where the next one begins. `None`: there is none, or it is cut off.
#[inline]
pub(crate) fn boxed(frames: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = frames.get(at..)?;
    let (head, rest) = rest.split_first_chunk::<HEAD>()?;
    let len = u32::from_le_bytes(*head) as usize;
    let body = rest.get(..len)?;
    Some((body, at + (HEAD + len).next_multiple_of(size_of::<u64>())))
}

/// Incoming bytes, cut into frames.
///
/// ```text
/// bytes:  [ used up | received, not yet taken | space ]
///                   start                     end
/// ```
#[derive(Debug)]
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    limit: usize,
}

impl FrameBuffer {
    /// A buffer for frames with a body of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, end: 0, limit }
    }

    /// From now on bodies may be of this length.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Where the next reading goes; never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > CAPACITY_MAX {
                self.bytes = Vec::new(); // grown for one large frame, which has been taken
            }
        }
        if self.end == self.bytes.len() {
            if self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            if self.end > self.bytes.len() / 2 || self.bytes.is_empty() {
                let len = (self.bytes.len() * 2).max(CAPACITY_MIN);
                let wanted = self.body_len().map_or(0, |body| HEAD + body);
                let len = if wanted > self.bytes.len() {
                    len.min(wanted.max(CAPACITY_MAX))
                } else {
                    len.min(self.bytes.len().max(CAPACITY_MAX))
                };
                self.bytes.resize(len.max(self.end + 1), 0);
            }
        }
        &mut self.bytes[self.end..]
    }

    /// As [`space`](Self::space), for a reader that reads several times before it takes frames: the
    /// buffer grows with what has been read.
    pub(crate) fn more_space(&mut self) -> &mut [u8] {
        if self.start < self.end && self.end == self.bytes.len() {
            self.bytes.resize((self.bytes.len() * 2).max(CAPACITY_MIN), 0);
        }
        self.space()
    }

    /// So many bytes were read into [`FrameBuffer::space`].
    pub(crate) fn filled(&mut self, len: usize) {
        self.end += len;
        assert!(self.end <= self.bytes.len(), "more was read than there was space");
    }

    /// The body of the next whole frame; it is used up.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Range<usize>>, TooLong> {
        let Some(body) = self.body_len() else { return Ok(None) };
        if body > self.limit {
            return Err(TooLong { len: body, limit: self.limit });
        }
        let start = self.start + HEAD;
        if self.end - start < body {
            return Ok(None);
        }
        self.start = start + body;
        Ok(Some(start..start + body))
    }

    /// Gives back the frame that was taken last.
    pub(crate) fn put_back(&mut self, range: Range<usize>) {
        debug_assert_eq!(range.end, self.start, "only the last one can be given back");
        self.start = range.start - HEAD;
    }

    /// How many bytes are missing to the end of the frame's head, or else of the frame.
    pub(crate) fn due(&mut self) -> usize {
        let whole = self.body_len().map_or(HEAD, |body| HEAD + body);
        let due = whole - self.rest();
        due.min(self.space().len())
    }

    /// The bytes of a frame that [`FrameBuffer::next_frame`] gave, until the next reading.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// A part of a frame, to be kept. That of a large frame which was the last in the buffer is not
    /// copied.
    pub(crate) fn take(&mut self, range: Range<usize>) -> Packet {
        if range.len() > CAPACITY_MAX && self.start == self.end {
            (self.start, self.end) = (0, 0);
            return Packet::Large(Bytes::from(std::mem::take(&mut self.bytes)).slice(range));
        }
        Packet::copy_from(&self.bytes[range])
    }

    /// Bytes of a frame that has not come whole.
    pub(crate) fn rest(&self) -> usize {
        self.end - self.start
    }

    /// What has come of the body of a frame that has not come whole. Empty: nothing of it, or there
    /// is none.
    pub(crate) fn begun(&self) -> &[u8] {
        self.bytes[self.start..self.end].get(HEAD..).unwrap_or_default()
    }

    /// How much memory it holds, in bytes.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    fn body_len(&self) -> Option<usize> {
        let head = self.bytes[self.start..self.end].first_chunk::<HEAD>()?;
        Some(u32::from_le_bytes(*head) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bodies: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for body in bodies {
            let start = begin(&mut out);
            out.extend(body);
            finish(&mut out, start);
        }
        out
    }

    /// Feeds at most `step` bytes a reading.
    fn read(
        mut bytes: &[u8],
        step: usize,
        limit: usize,
    ) -> Result<(Vec<Vec<u8>>, FrameBuffer), TooLong> {
        let (mut buffer, mut got) = (FrameBuffer::new(limit), Vec::new());
        while !bytes.is_empty() {
            let space = buffer.space();
            let n = step.min(space.len()).min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            buffer.filled(n);
            while let Some(range) = buffer.next_frame()? {
                got.push(buffer.take(range).to_vec());
            }
        }
        Ok((got, buffer))
    }

    #[test]
    fn frames_cut_at_every_byte_come_out_whole() {
        let bodies = [vec![], vec![1], vec![2; 300], vec![], (0..=255).collect()];
        for step in 1..600 {
            let (got, rest) = read(&frames(&bodies), step, 1 << 20).expect("no frame is too long");
            assert_eq!((got, rest.rest()), (bodies.to_vec(), 0));
        }
    }

    #[test]
    fn large_frames_between_small_ones_come_out_whole() {
        let bodies = [
            vec![1; 70_000],
            vec![2; 3],
            vec![3; 1 << 20],
            vec![4; 65_536],
            vec![5; 65_537],
            vec![],
        ];
        for step in [1, 777, 65_536, 1 << 22] {
            let (got, _) = read(&frames(&bodies), step, 1 << 20).expect("no frame is too long");
            assert_eq!(got, bodies);
        }
    }

    #[test]
    fn too_long_a_frame_is_refused_before_its_body_and_before_memory_is_taken() {
        let error = read(&[0xff, 0xff, 0xff, 0xff], 4, 1 << 20).expect_err("it is too long");
        assert_eq!(error, TooLong { len: u32::MAX as usize, limit: 1 << 20 });
        let (_, buffer) =
            read(&(1u32 << 30).to_le_bytes(), 4, 1 << 30).expect("that length is allowed");
        assert!(buffer.capacity() <= CAPACITY_MAX, "{} bytes for four", buffer.capacity());
    }

    #[test]
    fn memory_taken_for_a_large_frame_is_given_back() {
        let (_, mut buffer) = read(&frames(&[vec![0; 1 << 20], vec![1]]), 1 << 22, 1 << 20)
            .expect("no frame is too long");
        buffer.space();
        assert!(buffer.capacity() <= CAPACITY_MAX);
    }
}
