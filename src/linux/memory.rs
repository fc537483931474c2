//! Memory that the kernel writes to or reads from while an operation is in flight.
#![allow(unsafe_code)] // mmap, and addresses that must not move while the kernel has them

use std::io;
use std::ptr::NonNull;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// The distance between pieces of `usable` bytes each: an odd number of cache lines, so that
/// the first lines of many pieces do not all fall into the same few cache sets.
pub(super) const fn stride(usable: usize) -> usize {
    (usable.div_ceil(LINE_BYTES) | 1) * LINE_BYTES
}

/// Zeroed private memory, page-aligned, that costs nothing until it is touched.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Maps at least one byte.
    pub(super) fn new(bytes: usize) -> io::Result<Mapping> {
        let bytes = bytes.max(1);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory
        // that exists already.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap never maps page zero for us");
        Ok(Mapping { base, bytes })
    }

    /// The first byte.
    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The address of byte `offset`, from which `length` bytes are inside the mapping.
    pub(super) fn at(&self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length).expect("offsets are small");
        assert!(end <= self.bytes, "piece outside its mapping");
        // SAFETY: offset <= bytes was checked, so the result stays inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Bytes `offset..offset + length`.
    ///
    /// # Safety
    /// The kernel must not be writing these bytes, and no other reference to them may exist.
    pub(super) unsafe fn slice(&mut self, offset: usize, length: usize) -> &mut [u8] {
        let start = self.at(offset, length);
        // SAFETY: `at` checked the bounds, mmap zeroed the bytes, and the caller vouches that
        // no other code uses them while `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and bytes are those of our own mmap, which is unmapped only here.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0);
    }
}

/// A value whose address is stable and may be given to the kernel. Unlike a `Box` it may be
/// moved while the kernel writes through the address.
#[derive(Debug)]
pub(super) struct Pinned<T>(NonNull<T>);

impl<T> Pinned<T> {
    /// Moves `value` to its final address.
    pub(super) fn new(value: T) -> Self {
        Pinned(NonNull::from(Box::leak(Box::new(value))))
    }

    /// The address, valid until drop.
    pub(super) fn address(&self) -> *mut T {
        self.0.as_ptr()
    }

    /// The value.
    ///
    /// # Safety
    /// No operation that writes to it may be in flight.
    pub(super) unsafe fn value_mut(&mut self) -> &mut T {
        // SAFETY: the address came from a Box that only drop frees; the caller vouches that
        // the kernel is not using it, and `&mut self` that no other code is.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: the address came from Box::leak in `new` and is given back exactly once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_odd_numbers_of_lines() {
        for (usable, expected) in
            [(1, 64), (64, 64), (65, 192), (4096, 4160), (16_704, 16_704), (262_144, 262_208)]
        {
            assert_eq!(stride(usable), expected, "{usable}");
        }
    }

    #[test]
    fn a_mapping_is_zeroed_and_writable_to_its_last_byte() {
        let mut mapping = Mapping::new(10_000).unwrap();
        // SAFETY: no kernel operation knows of this mapping.
        let bytes = unsafe { mapping.slice(0, 10_000) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        bytes[9_999] = 7;
        // SAFETY: as above, and the slice before is no longer used.
        assert_eq!(unsafe { mapping.slice(9_999, 1) }, [7]);
    }

    #[test]
    #[should_panic(expected = "piece outside its mapping")]
    fn a_piece_outside_is_refused() {
        let mapping = Mapping::new(4096).unwrap();
        mapping.at(4000, 97);
    }
}
