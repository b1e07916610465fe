//! What an executable is: as much of ELF as decides whether a library can be preloaded into it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How an executable file begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Image {
    /// A program for this machine that the dynamic linker of this path starts.
    Dynamic {
        /// The dynamic linker.
        interpreter: String,
    },
    /// A program for this machine that the kernel starts by itself.
    Static,
    /// A program for another machine.
    Foreign {
        /// Which.
        machine: String,
    },
    /// ELF, but not a program that could be understood.
    Broken,
    /// `#!` and what follows.
    Script {
        /// The program that reads it.
        interpreter: String,
    },
    /// Anything else. `execvp` hands it to the shell.
    Other,
}

const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const PT_INTERP: u32 = 3;
const PROGRAM_HEADER_BYTES: usize = 56;

/// The machine that this build runs on, by its number in ELF.
const MACHINE: u16 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else if cfg!(target_arch = "riscv64") {
    243
} else {
    panic!("add the ELF number of this architecture")
};

impl Image {
    /// Looks at an executable.
    pub(super) fn of_file(file: &File) -> io::Result<Self> {
        // The kernel, too, decides by the first 256 bytes.
        let mut head = [0; 256];
        let len = read_up_to(file, &mut head, 0)?;
        let head = &head[..len];
        if let Some(rest) = head.strip_prefix(b"#!") {
            return Ok(Self::of_script(rest));
        }
        if !head.starts_with(&MAGIC) {
            return Ok(Self::Other);
        }
        // What is cut off reads as broken.
        Ok(Self::of_elf(file, head)?.unwrap_or(Self::Broken))
    }

    fn of_script(rest: &[u8]) -> Self {
        let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        match line.split([' ', '\t', '\0']).find(|word| !word.is_empty()) {
            Some(interpreter) => Self::Script { interpreter: interpreter.to_owned() },
            None => Self::Other,
        }
    }

    fn of_elf(file: &File, head: &[u8]) -> io::Result<Option<Self>> {
        let (Some(&class), Some(&order), Some(machine)) = (head.get(4), head.get(5), u16_at(head, 18)) else {
            return Ok(None);
        };
        if class != CLASS_64 || order != LITTLE_ENDIAN || machine != MACHINE {
            return Ok(Some(Self::Foreign { machine: machine_name(class, order, machine) }));
        }
        let (Some(offset), Some(entry_bytes), Some(nr_entries)) =
            (u64_at(head, 32), u16_at(head, 54), u16_at(head, 56))
        else {
            return Ok(None);
        };
        if usize::from(entry_bytes) != PROGRAM_HEADER_BYTES {
            return Ok(None);
        }
        let mut headers = vec![0; PROGRAM_HEADER_BYTES * usize::from(nr_entries)];
        if read_up_to(file, &mut headers, offset)? < headers.len() {
            return Ok(None);
        }
        let interp = headers.chunks(PROGRAM_HEADER_BYTES).find(|entry| u32_at(entry, 0) == Some(PT_INTERP));
        match interp {
            None => Ok(Some(Self::Static)),
            Some(entry) => read_interpreter(file, entry),
        }
    }
}

/// Follows the program header that names the dynamic linker.
fn read_interpreter(file: &File, entry: &[u8]) -> io::Result<Option<Image>> {
    let (Some(offset), Some(len)) = (u64_at(entry, 8), u64_at(entry, 32)) else { return Ok(None) };
    let Some(len) = usize::try_from(len).ok().filter(|len| (2..=4096).contains(len)) else { return Ok(None) };
    let mut path = vec![0; len];
    if read_up_to(file, &mut path, offset)? < len {
        return Ok(None);
    }
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Some(Image::Dynamic { interpreter: String::from_utf8_lossy(path).into_owned() }))
}

/// Reads until the buffer or the file is at its end.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let Some(at) = offset.checked_add(done as u64) else { break };
        match file.read_at(&mut buffer[done..], at) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An offset that no file can have.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

fn machine_name(class: u8, order: u8, machine: u16) -> String {
    let machine = if order == LITTLE_ENDIAN { machine } else { machine.swap_bytes() };
    let name = match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 => "32-bit PowerPC",
        21 => "PowerPC",
        22 => "s390",
        40 => "32-bit ARM",
        62 if class != CLASS_64 => "x32 (x86-64 with 32-bit pointers)",
        62 => "x86-64",
        183 => "AArch64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return format!("another machine (ELF number {machine})"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(bytes: &[u8]) -> Image {
        let name = format!("hmm-elf-test-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(bytes).unwrap();
        Image::of_file(&file).unwrap()
    }

    /// A header for this machine with room for `nr_entries` program headers behind it.
    fn elf(nr_entries: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64 + PROGRAM_HEADER_BYTES * usize::from(nr_entries)];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&[CLASS_64, LITTLE_ENDIAN]);
        bytes[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&u16::try_from(PROGRAM_HEADER_BYTES).unwrap().to_le_bytes());
        bytes[56..58].copy_from_slice(&nr_entries.to_le_bytes());
        bytes
    }

    #[test]
    fn programs_of_this_machine_are_told_apart() {
        let mine = File::open(std::env::current_exe().unwrap()).unwrap();
        let Image::Dynamic { interpreter } = Image::of_file(&mine).unwrap() else {
            panic!("this test is linked dynamically")
        };
        assert!(interpreter.contains("/ld"), "{interpreter}");
        // The linker itself is the program that needs none.
        assert_eq!(Image::of_file(&File::open(interpreter).unwrap()).unwrap(), Image::Static);
        assert_eq!(image(&elf(1)), Image::Static);
    }

    #[test]
    fn other_machines_are_named() {
        let mut bytes = elf(0);
        bytes[18..20].copy_from_slice(&40_u16.to_le_bytes());
        assert_eq!(image(&bytes), Image::Foreign { machine: "32-bit ARM".to_owned() });
        // Big endian, as an old PowerPC has it.
        bytes[5] = 2;
        bytes[18..20].copy_from_slice(&21_u16.to_be_bytes());
        assert_eq!(image(&bytes), Image::Foreign { machine: "PowerPC".to_owned() });
        bytes[18..20].copy_from_slice(&999_u16.to_be_bytes());
        assert!(matches!(image(&bytes), Image::Foreign { machine } if machine.contains("999")));
    }

    #[test]
    fn scripts_name_their_interpreter() {
        for (text, interpreter) in [
            ("#!/bin/sh\nexit 0\n", "/bin/sh"),
            ("#! \t/usr/bin/env -S python3 -u\n", "/usr/bin/env"),
            ("#!/no/newline", "/no/newline"),
        ] {
            assert_eq!(image(text.as_bytes()), Image::Script { interpreter: interpreter.to_owned() });
        }
        for text in ["", "echo hello\n", "#!\n", "# !/bin/sh\n"] {
            assert_eq!(image(text.as_bytes()), Image::Other, "{text}");
        }
    }

    #[test]
    fn damaged_files_are_broken_and_nothing_worse() {
        let mut interp = elf(1);
        interp[64..68].copy_from_slice(&PT_INTERP.to_le_bytes());
        for (offset, len) in [(0, 0), (u64::MAX, 30), (50, u64::MAX), (100, 2000)] {
            interp[72..80].copy_from_slice(&u64::to_le_bytes(offset));
            interp[96..104].copy_from_slice(&u64::to_le_bytes(len));
            assert_eq!(image(&interp), Image::Broken, "offset {offset}, length {len}");
        }
        let whole = elf(3);
        assert_eq!(image(&whole), Image::Static);
        for len in 4..whole.len() {
            assert_eq!(image(&whole[..len]), Image::Broken, "cut to {len}");
        }
    }
}
