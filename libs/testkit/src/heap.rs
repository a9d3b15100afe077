//! An allocator that counts, for programs that measure what something costs:
//!
//! ```text
//! #[global_allocator]
//! static ALLOCATOR: heap::Counting = heap::Counting;
//! ```

#![allow(
    unsafe_code,
    reason = "a counting allocator can only be written with it"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a thread has asked for, and what of it it has not given back. A thread that frees what
/// another one allocated may be below zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heap {
    /// Bytes that are in use.
    pub bytes: i64,
    /// In so many pieces.
    pub blocks: i64,
    /// How often memory was asked for, growing a piece included.
    pub allocations: u64,
}

thread_local! {
    static HEAP: Cell<Heap> = const {
        Cell::new(Heap {
            bytes: 0,
            blocks: 0,
            allocations: 0,
        })
    };
}

/// The calling thread's heap. Zero throughout unless [`Counting`] is the program's allocator.
pub fn of_this_thread() -> Heap {
    HEAP.get()
}

fn count(bytes: i64, blocks: i64, allocations: u64) {
    let heap = HEAP.get();
    HEAP.set(Heap {
        bytes: heap.bytes + bytes,
        blocks: heap.blocks + blocks,
        allocations: heap.allocations + allocations,
    });
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The system's allocator, counted by thread.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged. Counting touches no memory
// that it manages, and allocates none: the thread's counter is a constant without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()), 1, 1);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-signed(layout.size()), -1, 0);
        // SAFETY: `pointer` came from `System` by `alloc` or `realloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(signed(new_size) - signed(layout.size()), 0, 1);
        // SAFETY: `pointer` came from `System` by `alloc` or `realloc` with this layout.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
