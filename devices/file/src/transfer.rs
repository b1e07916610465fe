//! Requests to the file, and how one is carried to its end whatever the kernel does half way.

use hmm_device::DeviceError;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// Requests that are given to the kernel at a time.
pub(crate) const BATCH: usize = 64;

/// Whose memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Side {
    /// The caller's, whose pages they are.
    #[default]
    Caller,
    /// The lane's.
    Lane,
}

/// What a request transfers: bytes side by side in the file, and in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which file, by its number.
    pub(crate) file: u8,
    /// Where in the file.
    pub(crate) offset: u64,
    pub(crate) side: Side,
    /// Where in that memory.
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// A part of a piece; by default of nothing, which is always transferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Which piece.
    pub(crate) piece: usize,
    /// Where it ends in that.
    end: usize,
}

impl Stretch {
    /// Whether it is of nothing.
    pub(crate) const fn is_empty(self) -> bool {
        self.end == 0
    }

    /// Whether it is a part of that piece.
    pub(crate) const fn is_of(self, piece: usize) -> bool {
        self.piece == piece && !self.is_empty()
    }

    /// Of no piece: never transferred.
    pub(crate) const NONE: Self = Self { piece: BATCH, end: 1 };
}

/// The pieces of a batch. Those of one side come in the order in which they are in its memory.
#[derive(Debug)]
pub(crate) struct Pieces {
    pieces: [Piece; BATCH],
    len: usize,
    /// Bytes to which a piece of the lane's may grow.
    most: usize,
}

impl Pieces {
    /// None; those of the lane may grow to so many bytes.
    pub(crate) const fn of_at_most(most: usize) -> Self {
        Self {
            pieces: [Piece { file: 0, offset: 0, side: Side::Caller, at: 0, len: 0 }; BATCH],
            len: 0,
            most,
        }
    }

    /// In which file the last one ends, and where, if it is of that side.
    pub(crate) fn end(&self, side: Side) -> Option<(u8, u64)> {
        let last = self.pieces[..self.len].last().filter(|last| last.side == side)?;
        Some((last.file, last.offset + last.len as u64))
    }

    /// Adds one, to the last if they are side by side in the file and in memory. `None`: there are as many as can be.
    pub(crate) fn push(&mut self, piece: Piece) -> Option<Stretch> {
        if self.end(piece.side) == Some((piece.file, piece.offset))
            && let Some(last) = self.pieces[..self.len].last_mut()
            && last.at + last.len == piece.at
            && (piece.side == Side::Caller || last.len + piece.len <= self.most)
        {
            last.len += piece.len;
            return Some(Stretch { piece: self.len - 1, end: last.len });
        }
        *self.pieces.get_mut(self.len)? = piece;
        self.len += 1;
        Some(Stretch { piece: self.len - 1, end: piece.len })
    }

    pub(crate) fn as_slice(&self) -> &[Piece] {
        &self.pieces[..self.len]
    }
}

/// One way or the other.
#[derive(Debug)]
pub(crate) enum Buffer<'a> {
    /// From the file.
    Read(&'a mut [u8]),
    /// To the file.
    Write(&'a [u8]),
}

impl Buffer<'_> {
    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Read(bytes) => bytes.len(),
            Self::Write(bytes) => bytes.len(),
        }
    }
}

/// A piece on its way.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) offset: u64,
    pub(crate) buffer: Buffer<'a>,
    /// Bytes that are transferred.
    pub(crate) done: usize,
    /// What the kernel said instead of going on.
    pub(crate) error: Option<Errno>,
    /// The kernel has it.
    pub(crate) is_out: bool,
}

impl Request<'_> {
    /// Transfers what is left. A transfer may be short, and be continued; the file may end where it did not before.
    pub(crate) fn finish(&mut self) {
        let file = self.file;
        while self.done < self.buffer.len() && self.error.is_none() {
            let at = self.offset + self.done as u64;
            let moved = match &mut self.buffer {
                Buffer::Read(bytes) => rustix::io::pread(file, &mut bytes[self.done..], at),
                Buffer::Write(bytes) => rustix::io::pwrite(file, &bytes[self.done..], at),
            };
            self.note(moved);
        }
    }

    /// Whether a stretch of it is transferred.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn outcome(&self, stretch: Stretch) -> Result<(), DeviceError> {
        if self.done >= stretch.end { Ok(()) } else { Err(self.error.map_or(DeviceError::Io, meaning)) }
    }

    /// Takes notice of what the kernel says of a transfer of what is left.
    pub(crate) fn note(&mut self, moved: Result<usize, Errno>) {
        match moved {
            // The end of the file.
            Ok(0) => self.error = Some(Errno::NODATA),
            Ok(bytes) => self.done += bytes,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => self.error = Some(error),
        }
    }
}

/// Memory of one side of which parts are cut off from the front.
pub(crate) struct Rest<'a> {
    bytes: &'a mut [u8],
    /// Bytes that were in front of it.
    before: usize,
}

impl<'a> Rest<'a> {
    pub(crate) const fn of(bytes: &'a mut [u8]) -> Self {
        Self { bytes, before: 0 }
    }

    /// So many bytes at a place that is behind what was cut off before.
    pub(crate) fn cut(&mut self, at: usize, len: usize) -> &'a mut [u8] {
        let bytes = std::mem::take(&mut self.bytes);
        let (_, bytes) = bytes.split_at_mut(at - self.before);
        let (part, rest) = bytes.split_at_mut(len);
        (self.bytes, self.before) = (rest, at + len);
        part
    }
}

/// The requests for a batch.
#[derive(Debug)]
pub(crate) struct Requests<'a> {
    requests: [Option<Request<'a>>; BATCH],
    len: usize,
}

impl<'a> Requests<'a> {
    pub(crate) const fn new() -> Self {
        Self { requests: [const { None }; BATCH], len: 0 }
    }

    /// From the memory of both sides into the file.
    pub(crate) fn write(file: BorrowedFd<'a>, pieces: &Pieces, caller: &'a [u8], lane: &'a [u8]) -> Self {
        let mut this = Self::new();
        for piece in pieces.as_slice() {
            let bytes = match piece.side {
                Side::Caller => caller,
                Side::Lane => lane,
            };
            this.push(file, piece.offset, Buffer::Write(&bytes[piece.at..piece.at + piece.len]));
        }
        this
    }

    /// Adds one: there are as many as there can be [`Pieces`].
    pub(crate) fn push(&mut self, file: BorrowedFd<'a>, offset: u64, buffer: Buffer<'a>) {
        if let Some(request) = self.requests.get_mut(self.len) {
            *request = Some(Request { file, offset, buffer, done: 0, error: None, is_out: false });
            self.len += 1;
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&mut self, index: usize) -> Option<&mut Request<'a>> {
        self.requests.get_mut(index)?.as_mut()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Request<'a>> {
        self.requests.iter_mut().flatten()
    }

    /// The kernel says that it has ended one.
    pub(crate) fn ended(&mut self, number: u64, moved: Result<usize, Errno>) {
        if let Some(request) = usize::try_from(number).ok().and_then(|number| self.get(number)) {
            request.is_out = false;
            request.note(moved);
        }
    }

    /// The last bytes of a stretch, so many. Nothing, if they are the kernel's.
    pub(crate) fn bytes(&self, stretch: Stretch, len: usize) -> &[u8] {
        let request = self.requests.get(stretch.piece).and_then(Option::as_ref);
        let bytes = match request.filter(|request| !request.is_out).map(|request| &request.buffer) {
            Some(Buffer::Read(bytes)) => bytes,
            Some(Buffer::Write(bytes)) => *bytes,
            None => return &[],
        };
        &bytes[stretch.end - len..stretch.end]
    }
}

/// What it means for the pages.
fn meaning(error: Errno) -> DeviceError {
    match error {
        Errno::NOSPC | Errno::DQUOT => DeviceError::OutOfMemory,
        Errno::NODEV | Errno::NXIO | Errno::STALE | Errno::SHUTDOWN | Errno::BADF => DeviceError::Lost,
        // The file ends in front of what was written to it.
        Errno::NODATA => DeviceError::Corrupt,
        _ => DeviceError::Io,
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;

    const PAGE: usize = 4096;

    fn pieces(blocks: &[(usize, Side, usize)]) -> (Pieces, Vec<Stretch>) {
        let mut pieces = Pieces::of_at_most(usize::MAX);
        let stretches = blocks.iter().map(|(block, side, page)| {
            let (offset, at) = ((block * PAGE) as u64, page * PAGE);
            pieces
                .push(Piece { offset, side: *side, at, len: PAGE, ..Piece::default() })
                .expect("there is room")
        });
        let stretches = stretches.collect();
        (pieces, stretches)
    }

    #[test]
    fn neighbours_are_one_request() {
        use Side::{Caller, Lane};
        let (pieces, stretches) = pieces(&[
            (3, Caller, 0),
            (4, Caller, 1),
            (5, Lane, 0),
            (6, Lane, 1),
            (7, Lane, 3),
            (6, Caller, 2),
            (8, Caller, 4),
        ]);
        let seen: Vec<_> = pieces
            .as_slice()
            .iter()
            .map(|it| (it.offset / PAGE as u64, it.side, it.at / PAGE, it.len / PAGE))
            .collect();
        let expected =
            [(3, Caller, 0, 2), (5, Lane, 0, 2), (7, Lane, 3, 1), (6, Caller, 2, 1), (8, Caller, 4, 1)];
        assert_eq!(seen, expected);
        assert_eq!(stretches[1], Stretch { piece: 0, end: 2 * PAGE });
        let (mut caller, mut lane) = (vec![0; 5 * PAGE], vec![0; 4 * PAGE]);
        (0..5).for_each(|page| caller[page * PAGE] = page.to_le_bytes()[0]);
        (0..4).for_each(|page| lane[page * PAGE] = 100 + page.to_le_bytes()[0]);
        let first = |request: &mut Request<'_>| match &request.buffer {
            Buffer::Read(bytes) => bytes[0],
            Buffer::Write(bytes) => bytes[0],
        };
        let firsts: Vec<u8> = Requests::write(CWD, &pieces, &caller, &lane).iter_mut().map(first).collect();
        assert_eq!(firsts, [0, 100, 103, 2, 4]);
        let mut rest = Rest::of(&mut caller);
        let cut = |at: usize| rest.cut(at * PAGE, PAGE)[0];
        assert_eq!([0, 1, 4].map(cut), [0, 1, 4]);
        let mut small = Pieces::of_at_most(2 * PAGE);
        let block = |number: usize| Piece {
            offset: (number * PAGE) as u64,
            at: number * PAGE,
            len: PAGE,
            side: Lane,
            ..Piece::default()
        };
        (0..5).for_each(|number| _ = small.push(block(number)));
        assert_eq!(small.as_slice().iter().map(|piece| piece.len / PAGE).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn there_are_no_more_requests_than_fit() {
        let mut pieces = Pieces::of_at_most(usize::MAX);
        let piece =
            |number: usize| Piece { offset: (number * 8 * PAGE) as u64, len: PAGE, ..Piece::default() };
        assert!((0..BATCH).all(|number| pieces.push(piece(number)).is_some()));
        assert_eq!(pieces.push(piece(BATCH)), None);
        let next = Piece { offset: piece(BATCH - 1).offset + PAGE as u64, at: PAGE, ..piece(0) };
        assert!(pieces.push(next).is_some(), "the last can still grow");
    }

    #[test]
    fn pages_count_up_to_where_it_failed() {
        let blocks = [0, 1, 2, 7, 8, 20].map(|block| (block, Side::Caller, block));
        let (pieces, stretches) = pieces(&blocks);
        let bytes = vec![0; 21 * PAGE];
        let mut requests = Requests::write(CWD, &pieces, &bytes, &[]);
        for (request, moved) in requests.iter_mut().zip([3 * PAGE, PAGE + 17, PAGE]) {
            request.note(Ok(moved));
        }
        requests.iter_mut().nth(1).expect("there are three").note(Err(Errno::NOSPC));
        let full = Err(DeviceError::OutOfMemory);
        let mut of = |it: &Stretch| requests.get(it.piece).expect("there is one").outcome(*it);
        assert_eq!(
            stretches.iter().map(&mut of).collect::<Vec<_>>(),
            [Ok(()), Ok(()), Ok(()), Ok(()), full, Ok(())]
        );
    }

    #[test]
    fn an_interruption_is_no_error() {
        let (pieces, stretches) = pieces(&[(0, Side::Caller, 0)]);
        let bytes = [0; PAGE];
        let mut requests = Requests::write(CWD, &pieces, &bytes, &[]);
        for request in requests.iter_mut() {
            request.note(Err(Errno::INTR));
            assert_eq!((request.done, request.error), (0, None));
            request.note(Ok(0));
        }
        let outcome = requests.get(0).expect("there is one").outcome(stretches[0]);
        assert_eq!(outcome, Err(DeviceError::Corrupt), "the file has ended");
    }
}
