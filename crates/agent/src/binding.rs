//! What we call of libc's is libc's, whatever the program has under the same name.
//!
//! The dynamic linker gives everybody the first function of a name: the program's own, where it has one, or that of a library
//! which was preloaded in front of us. For what we stand in front of ourselves that is as it should be (`next`). But our threads
//! must not run the program's `memcpy`: one of a sanitizer's looks into memory that is managed, and a thread that waits for
//! itself to bring a page home waits for ever (I6).
//!
//! So, before there are our threads, our table of functions is filled anew, from libc alone, and with our own. The relocations in
//! our dynamic section tell which entries are whose. The table is read only by then, and written by way of `/proc/self/mem`; where
//! that is not possible it stays as it is.

use std::ffi::{CStr, c_char, c_void};
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::dl::{About, about, libc_handle};

/// Relocations that put the address of a function into the table.
#[cfg(target_arch = "x86_64")]
const KINDS: [u64; 2] = [6, 7];
#[cfg(target_arch = "aarch64")]
const KINDS: [u64; 2] = [1025, 1026];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const KINDS: [u64; 2] = [u64::MAX; 2];

/// The type of a symbol that is a function.
const STT_FUNC: u8 = 2;

/// What `realpath(3)` and others give us is from the program's `malloc`, as libc calls it, too.
const KEPT: [&CStr; 1] = [c"free"];

/// The beginning of what `<link.h>` calls `link_map`.
#[repr(C)]
struct Library {
    bias: usize,
    _name: *const c_char,
    dynamic: *const Dynamic,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Dynamic {
    tag: usize,
    value: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Relocation {
    place: usize,
    info: u64,
    _addend: i64,
}

/// Has all of our calls of libc's functions come to libc. To be called while nobody else runs our code.
pub(crate) fn bind_to_libc() {
    let (Some(ours), Some(libc)) = (our_library(), libc_handle()) else { return };
    let mut wanted = ours.relocations().filter_map(|relocation| ours.wanted(relocation, libc)).peekable();
    // Mostly nobody has functions of the same names, and all is right already.
    if wanted.peek().is_none() {
        return;
    }
    let Ok(memory) = File::options().write(true).open("/proc/self/mem") else { return };
    for (entry, function) in wanted {
        // What cannot be written is what it was.
        let _ = memory.write_all_at(&function.to_ne_bytes(), entry as u64);
    }
}

fn our_library() -> Option<&'static Library> {
    let library = about(bind_to_libc as *const c_void, About::Library)?;
    // SAFETY: that is what it is, and it stays as long as we do.
    unsafe { library.cast::<Library>().as_ref() }
}

impl Library {
    /// What the dynamic section says under a tag.
    fn entry(&self, tag: usize) -> Option<usize> {
        for index in 0.. {
            // SAFETY: the section ends with an entry of tag 0, and this one is not behind it.
            let entry = unsafe { *self.dynamic.wrapping_add(index) };
            if entry.tag == 0 {
                return None;
            }
            if entry.tag == tag {
                return Some(entry.value);
            }
        }
        None
    }

    /// What an address in the dynamic section points to; some dynamic linkers have added the bias already.
    fn at<T>(&self, tag: usize) -> Option<*const T> {
        let address = self.entry(tag)?;
        let address = if address < self.bias { address + self.bias } else { address };
        Some(std::ptr::with_exposed_provenance(address))
    }

    fn relocations(&self) -> impl Iterator<Item = Relocation> {
        const RELA: (usize, usize) = (7, 8);
        const JMPREL: (usize, usize) = (23, 2);
        [RELA, JMPREL].into_iter().flat_map(|(table, bytes)| {
            let (first, bytes) = (self.at::<Relocation>(table), self.entry(bytes).unwrap_or(0));
            let nr = first.map_or(0, |_| bytes / size_of::<Relocation>());
            // SAFETY: the table has so many, and is never changed.
            first
                .into_iter()
                .flat_map(move |first| (0..nr).map(move |index| unsafe { *first.wrapping_add(index) }))
        })
    }

    /// The address of an entry of the table that is another function than it should be, and which that is: libc's, or ours.
    fn wanted(&self, relocation: Relocation, libc: *mut c_void) -> Option<(usize, usize)> {
        if !KINDS.contains(&(relocation.info & u64::from(u32::MAX))) {
            return None;
        }
        let function = self.function(usize::try_from(relocation.info >> 32).ok()?, libc)?;
        let entry = self.bias + relocation.place;
        // SAFETY: an entry of our table, which nobody changes meanwhile.
        let now = unsafe { std::ptr::with_exposed_provenance::<usize>(entry).read() };
        (now != function).then_some((entry, function))
    }

    /// The function that a symbol should stand for, if it is libc's, or ours.
    fn function(&self, symbol: usize, libc: *mut c_void) -> Option<usize> {
        const STRTAB: usize = 5;
        const SYMTAB: usize = 6;
        let (symbols, names) = self.at::<libc::Elf64_Sym>(SYMTAB).zip(self.at::<c_char>(STRTAB))?;
        // SAFETY: the table has all symbols that there are relocations for.
        let symbol = unsafe { *symbols.wrapping_add(symbol) };
        if symbol.st_info & 0xf != STT_FUNC {
            return None;
        }
        if symbol.st_shndx != 0 {
            return Some(self.bias + usize::try_from(symbol.st_value).ok()?);
        }
        // SAFETY: names are in this table, and end with a zero.
        let name = unsafe { CStr::from_ptr(names.wrapping_add(symbol.st_name as usize)) };
        if KEPT.contains(&name) {
            return None;
        }
        // SAFETY: looks a function up in a library that is loaded, by a name that ends with a zero.
        let function = unsafe { libc::dlsym(libc, name.as_ptr()) };
        (!function.is_null()).then(|| function.expose_provenance())
    }
}
