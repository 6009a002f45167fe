//! Breaks bytes in ways that a decoder may not expect: with an eye for where values begin and end.

use std::ops::Range;

/// SplitMix64: small, and the same everywhere. The number that it is made from is its whole state,
/// so that any case of a long run can be made again by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rng(pub(crate) u64);

/// From one state to the next, and from one case to the next.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which is not zero. (The slight bias does not matter here.)
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Small ones mostly, large ones sometimes.
    pub(crate) fn length(&mut self, most: usize) -> usize {
        let bits = self.below(usize::BITS as usize - most.leading_zeros() as usize + 1);
        (self.word() as usize & ((1 << bits) - 1)).min(most)
    }
}

/// How long a head is, how many bytes of content follow it, and how many values. What is cut off is
/// as long as it says.
fn shape(bytes: &[u8]) -> (usize, usize, usize) {
    let number = |width: usize| {
        bytes.get(1..=width).map_or(0, |bytes| {
            bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
        })
    };
    let of = |width: usize, extra: usize| (1 + width + extra, number(width), 0);
    match bytes[0] {
        0x00..=0x7f | 0xe0..=0xff | 0xc0..=0xc3 => (1, 0, 0),
        marker @ 0x80..=0x8f => (1, 0, usize::from(marker & 0xf) * 2),
        marker @ 0x90..=0x9f => (1, 0, usize::from(marker & 0xf)),
        marker @ 0xa0..=0xbf => (1, usize::from(marker & 0x1f), 0),
        marker @ 0xc4..=0xc6 => of(1 << (marker - 0xc4), 0),
        marker @ 0xc7..=0xc9 => of(1 << (marker - 0xc7), 1),
        marker @ 0xcc..=0xcf => (1 + (1 << (marker - 0xcc)), 0, 0),
        marker @ 0xd0..=0xd3 => (1 + (1 << (marker - 0xd0)), 0, 0),
        0xca => (5, 0, 0),
        0xcb => (9, 0, 0),
        marker @ 0xd4..=0xd8 => (2 + (1 << (marker - 0xd4)), 0, 0),
        marker @ 0xd9..=0xdb => of(1 << (marker - 0xd9), 0),
        marker @ 0xdc..=0xdd => (1 + (2 << (marker - 0xdc)), 0, number(2 << (marker - 0xdc))),
        marker @ 0xde..=0xdf => {
            (1 + (2 << (marker - 0xde)), 0, number(2 << (marker - 0xde)).saturating_mul(2))
        }
    }
}

/// Where values begin and end, outer ones before what is in them, as far as these bytes can be
/// followed.
pub(crate) fn spans(bytes: &[u8]) -> Vec<Range<usize>> {
    let (mut spans, mut open, mut at) =
        (Vec::<Range<usize>>::new(), Vec::<(usize, usize)>::new(), 0);
    while at < bytes.len() {
        let (head, content, values) = shape(&bytes[at..]);
        let end = at.saturating_add(head).saturating_add(content).min(bytes.len());
        spans.push(at..end);
        at = end;
        if values > 0 {
            open.push((spans.len() - 1, values));
            continue;
        }
        while let Some((span, left)) = open.last_mut() {
            *left -= 1;
            if *left > 0 {
                break;
            }
            spans[*span].end = at;
            open.pop();
        }
    }
    open.into_iter().for_each(|(span, _)| spans[span].end = at);
    spans
}

/// Heads that claim much, markers, and values at the edges.
const STRANGE: [&[u8]; 36] = [
    &[0xc0],
    &[0xc1],
    &[0xc2],
    &[0x00],
    &[0x7f],
    &[0xe0],
    &[0x80],
    &[0x90],
    &[0xa0],
    &[0xc4, 0],
    &[0xd4, 1, 0xc0],
    &[0xc7, 3, 1, 0xd4, 1, 0xc0],
    &[0xc7, 2, 1, 0xcc, 5],
    &[0xc7, 1, 1, 0xc0],
    &[0xc7, 0, 1],
    &[0xc7, 0, 2],
    &[0xc7, 0, 3],
    &[0xd4, 1, 0],
    &[0xd4, 2, 7],
    &[0xd8, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
    &[0xd8, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xc4, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0],
    &[0xca, 0x7f, 0xa0, 0, 1],
    &[0xcb, 0xff, 0xf0, 0, 0, 0, 0, 0, 1],
    &[0xa1, 0xff],
    &[0xa3, 0xed, 0xa0, 0x80],
    &[0xa4, 0xf0, 0x9f, 0xa6, 0x80],
    &[0xdd, 0xff, 0xff, 0xff, 0xff],
    &[0xdf, 0xff, 0xff, 0xff, 0xff],
    &[0xdb, 0xff, 0xff, 0xff, 0xff],
    &[0xc6, 0xff, 0xff, 0xff, 0xff],
    &[0xc9, 0xff, 0xff, 0xff, 0xff, 2],
    &[0xdc, 0x00, 0xff],
    &[0xde, 0x00, 0x10],
];

/// What may stand around a value many times.
const NESTS: [&[u8]; 9] = [
    &[0x91],
    &[0x92, 0xc0],
    &[0xdc, 0, 1],
    &[0xdd, 0, 0, 0, 1],
    &[0x81, 0xa1, b'a'],
    &[0x81, 0xa3, b'S', b'e', b'q'],
    &[0x81, 0xa4, b'S', b'o', b'm', b'e'],
    &[0x81, 0xc0],
    &[0xde, 0, 1, 0x90],
];

/// Changes the bytes in one to four ways. `others` are what pieces are taken from.
pub(crate) fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut Rng) {
    for _ in 0..=rng.length(3) {
        if bytes.is_empty() {
            bytes.extend(*rng.pick(&STRANGE));
        }
        once(bytes, others, rng);
    }
}

fn once(bytes: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut Rng) {
    let spans = spans(bytes);
    let span = rng.pick(&spans).clone();
    let at = rng.below(bytes.len());
    match rng.below(17) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.word() as u8,
        2 => bytes.truncate(at),
        3 => {
            let end = at + rng.length(bytes.len() - at);
            bytes.drain(at..end);
        }
        4 => drop(bytes.splice(at..at, rng.word().to_le_bytes().into_iter().take(1 + at % 8))),
        5 => drop(bytes.splice(span, rng.pick(&STRANGE).iter().copied())),
        6 => drop(bytes.splice(span.start..span.start, rng.pick(&STRANGE).iter().copied())),
        7 => drop(bytes.drain(span)),
        8 => {
            let copy = bytes[span.clone()].to_vec();
            bytes.splice(span.end..span.end, copy);
        }
        9 => {
            // Two values change places, if neither is in the other.
            let other = rng.pick(&spans).clone();
            let (first, second) =
                if span.start < other.start { (span, other) } else { (other, span) };
            if first.end <= second.start {
                let (a, b) = (bytes[first.clone()].to_vec(), bytes[second.clone()].to_vec());
                bytes.splice(second, a);
                bytes.splice(first, b);
            }
        }
        10 | 11 => {
            let other = rng.pick(others);
            if !other.is_empty() {
                let piece = rng.pick(&self::spans(other)).clone();
                let place = if rng.one_in(3) { span.start..span.start } else { span };
                bytes.splice(place, other[piece].iter().copied());
            }
        }
        12 => {
            let times = if rng.one_in(20) { 100_000 } else { 1 + rng.length(300) };
            let nest = rng.pick(&NESTS).repeat(times);
            bytes.splice(span.start..span.start, nest);
        }
        13 => longer_form(bytes, span.start),
        16 => {
            // A marked `Some` around it, and around that.
            let mut content = bytes[span.clone()].to_vec();
            for _ in 0..=rng.length(300) {
                let length = (content.len() as u32).to_be_bytes();
                content.splice(0..0, [0xc9, length[0], length[1], length[2], length[3], 1]);
            }
            bytes.splice(span, content);
        }
        14 => {
            // One more or one less than there is.
            let by = if rng.one_in(2) { 1 } else { 0xff };
            let (head, ..) = shape(&bytes[span.start..]);
            let last = match bytes[span.start] {
                0xc7..=0xc9 | 0xd4..=0xd8 => head.saturating_sub(2),
                _ => head - 1,
            };
            let place = (span.start + last).min(bytes.len() - 1);
            bytes[place] = bytes[place].wrapping_add(by);
        }
        _ => {
            // A claim of about as much as there is.
            let left = (bytes.len() - at) as u32;
            let claim = left.wrapping_add(rng.below(5) as u32).wrapping_sub(2).to_be_bytes();
            let marker = *rng.pick(&[0xdd, 0xdf, 0xdb, 0xc6]);
            let times = 1 + rng.length(40);
            let heads = [marker, claim[0], claim[1], claim[2], claim[3]].repeat(times);
            bytes.splice(at..at, heads);
        }
    }
    bytes.truncate(1 << 20);
}

/// Writes a head in a longer form than it needs, which every reader accepts.
fn longer_form(bytes: &mut Vec<u8>, at: usize) {
    let marker = bytes[at];
    let head = match marker {
        0x00..=0x7f => vec![0xcf, 0, 0, 0, 0, 0, 0, 0, marker],
        0xe0..=0xff => vec![0xd2, 0xff, 0xff, 0xff, marker],
        0x80..=0x8f => vec![0xdf, 0, 0, 0, marker & 0xf],
        0x90..=0x9f => vec![0xdc, 0, marker & 0xf],
        0xa0..=0xbf => vec![0xdb, 0, 0, 0, marker & 0x1f],
        0xcc => vec![0xcd, 0],
        0xc4 => vec![0xc5, 0],
        0xc7 => vec![0xc8, 0],
        0xd4..=0xd8 => vec![0xc7, 1 << (marker - 0xd4)],
        other => vec![other],
    };
    bytes.splice(at..=at, head);
}
