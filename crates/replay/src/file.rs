//! The file: a header, records, and an end.
//!
//! All numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `hmmtrace` |
//! | 4 | the version of this format, 1 |
//! | 4 | bytes of a page, 4096 |
//! | 8 | the budget, in pages |
//! | 4 | the number of the policy that it was recorded under: 0 clock, 1 fifo, 2 twice, 3 round |
//! | 4 | 0 |
//!
//! Then a record of 16 bytes for each event, in the order in which they happened: two words, as
//! [`Record::pack`] has them. From the lowest bit, the first has 6 bits of what happened ([`What`]), 10 bits of
//! pages in front of the page, 10 bits of the process, 38 bits of microseconds since the beginning; the second 8 bits of
//! details, 20 bits of a number of pages, 36 bits of the page. An event's number is its position, with the events that a
//! `Lost` record counts added.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `hmm-end` and a line feed, which is no record |
//! | 8 | records |
//! | 8 | events that were lost |
//! | 8 | checksum: FNV-1a, of the words before the end, a word at a time |

use std::io::{self, Read, Write};

use hmm_core::addr::{PAGE_SIZE, Vpn};
use hmm_core::policy::Name;
use hmm_core::trace::{Event, MAX_PAGES, Record, What};
use thiserror::Error;

const MAGIC: u64 = u64::from_le_bytes(*b"hmmtrace");
const END: u64 = u64::from_le_bytes(*b"hmm-end\n");
const VERSION: u32 = 1;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Why a file could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The system says.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It begins otherwise.
    #[error("it is no trace of hmm's: write one with `hmm trace`")]
    Foreign,
    /// Of another version of hmm.
    #[error("its format has version {found}, and this hmm reads version {VERSION}: record it again")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It has no end.
    #[error(
        "it is cut off behind {nr_records} records: the run was killed, or the file copied in part; record it again"
    )]
    CutOff {
        /// Records that are whole.
        nr_records: u64,
    },
    /// It has been changed.
    #[error("it is damaged: {what}; record it again")]
    Damaged {
        /// What is wrong.
        what: String,
    },
}

/// What was known when the recording began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The budget.
    pub ram_pages: u64,
    /// The policy.
    pub policy: Name,
}

/// A trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What was known when it began.
    pub header: Header,
    /// What happened, in order.
    pub records: Vec<Record>,
    /// Events that are missing.
    pub nr_lost: u64,
}

#[derive(Debug)]
struct Checksum(u64);

impl Checksum {
    const fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(FNV_PRIME);
    }
}

/// Writes a trace, record by record.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    checksum: Checksum,
    nr_records: u64,
    nr_lost: u64,
    last_us: u64,
}

impl<W: Write> Writer<W> {
    /// Begins with the header.
    ///
    /// # Errors
    /// What writing says.
    pub fn new(to: W, header: Header) -> io::Result<Self> {
        let checksum = Checksum(FNV_OFFSET);
        let mut writer = Self { to, checksum, nr_records: 0, nr_lost: 0, last_us: 0 };
        let page_size = u32::try_from(PAGE_SIZE).unwrap_or(0);
        writer.word(MAGIC)?;
        writer.word(u64::from(page_size) << 32 | u64::from(VERSION))?;
        writer.word(header.ram_pages)?;
        writer.word(header.policy as u64)?;
        Ok(writer)
    }

    fn word(&mut self, word: u64) -> io::Result<()> {
        self.checksum.add(word);
        self.to.write_all(&word.to_le_bytes())
    }

    /// Writes one record. Whoever shares the ring may have put anything there: what is no record is lost.
    ///
    /// # Errors
    /// What writing says.
    pub fn record(&mut self, words: [u64; 2]) -> io::Result<()> {
        let Some(record) = Record::unpack(words) else { return self.lost(1) };
        self.last_us = record.time_us;
        self.nr_records += 1;
        words.into_iter().try_for_each(|word| self.word(word))
    }

    /// So many events were lost here.
    ///
    /// # Errors
    /// What writing says.
    pub fn lost(&mut self, nr_events: u64) -> io::Result<()> {
        self.nr_lost += nr_events;
        let mut rest = nr_events;
        while rest > 0 {
            let nr_pages = u32::try_from(rest).unwrap_or(u32::MAX).min(MAX_PAGES);
            let event = Event { what: What::Lost, page: Vpn(0), nr_pages, before: 0, detail: 0 };
            self.nr_records += 1;
            let record = Record { time_us: self.last_us, process: 0, event };
            record.pack().into_iter().try_for_each(|word| self.word(word))?;
            rest -= u64::from(nr_pages);
        }
        Ok(())
    }

    /// Events that were lost so far.
    pub const fn nr_lost(&self) -> u64 {
        self.nr_lost
    }

    /// Records so far.
    pub const fn nr_records(&self) -> u64 {
        self.nr_records
    }

    /// Writes the end. Without it the file is none.
    ///
    /// # Errors
    /// What writing says.
    pub fn end(mut self) -> io::Result<W> {
        let checksum = self.checksum.0;
        for word in [END, self.nr_records, self.nr_lost, checksum] {
            self.to.write_all(&word.to_le_bytes())?;
        }
        self.to.flush()?;
        Ok(self.to)
    }
}

struct Words<R> {
    from: R,
    checksum: Checksum,
}

impl<R: Read> Words<R> {
    /// The next word. `None`: there is none, or not all of it.
    fn next(&mut self) -> Result<Option<u64>, ReadError> {
        let mut bytes = [0; 8];
        match self.from.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(u64::from_le_bytes(bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn summed(&mut self) -> Result<Option<u64>, ReadError> {
        let word = self.next()?;
        word.inspect(|word| self.checksum.add(*word));
        Ok(word)
    }
}

impl Trace {
    /// Reads a trace, all of it.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(from: impl Read) -> Result<Self, ReadError> {
        let mut words = Words { from, checksum: Checksum(FNV_OFFSET) };
        let header = read_header(&mut words)?;
        let mut records = Vec::new();
        loop {
            let cut_off = ReadError::CutOff { nr_records: records.len() as u64 };
            let Some(first) = words.next()? else { return Err(cut_off) };
            if first == END {
                break;
            }
            words.checksum.add(first);
            let Some(second) = words.summed()? else { return Err(cut_off) };
            let record = Record::unpack([first, second]);
            records.push(record.ok_or_else(|| damaged(format!("record {} is none", records.len() + 1)))?);
        }
        let cut_off = || ReadError::CutOff { nr_records: records.len() as u64 };
        let checksum = words.checksum.0;
        let mut next = || words.next()?.ok_or_else(cut_off);
        let (nr_records, nr_lost, expected) = (next()?, next()?, next()?);
        if nr_records != records.len() as u64 {
            return Err(damaged(format!("it should have {nr_records} records, and has {}", records.len())));
        }
        let lost_here = records.iter().filter(|record| record.event.what == What::Lost);
        if lost_here.map(|record| u64::from(record.event.nr_pages)).sum::<u64>() != nr_lost {
            return Err(damaged("it lost another number of events than it says".to_owned()));
        }
        if checksum != expected {
            return Err(damaged("its checksum is another".to_owned()));
        }
        if words.from.read(&mut [0])? != 0 {
            return Err(damaged("there is something behind its end".to_owned()));
        }
        Ok(Self { header, records, nr_lost })
    }
}

fn read_header<R: Read>(words: &mut Words<R>) -> Result<Header, ReadError> {
    if words.summed()? != Some(MAGIC) {
        return Err(ReadError::Foreign);
    }
    let mut next = || words.summed()?.ok_or(ReadError::CutOff { nr_records: 0 });
    let versions = next()?.to_le_bytes();
    let [low, high] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| versions[at + byte])));
    if low != VERSION {
        return Err(ReadError::Version { found: low });
    }
    if high as usize != PAGE_SIZE {
        return Err(damaged(format!("it says that a page has {high} bytes")));
    }
    let ram_pages = next()?;
    let policy = u8::try_from(next()?).ok().and_then(Name::of_number);
    Ok(Header { ram_pages, policy: policy.ok_or_else(|| damaged("it names no policy".to_owned()))? })
}

const fn damaged(what: String) -> ReadError {
    ReadError::Damaged { what }
}
