//! The program's allocator: one that gives memory back that a moment has needed, such as all nodes
//! that come at once (docs/scale.md).

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// After how many milliseconds memory is given back that nobody uses: `mi_option_purge_delay`, which
/// the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;
/// What the delay is where nobody has set it, which tells that the number still means it.
const PURGE_DELAY_UNSET: c_long = 1000;

/// Has memory given back at once, and in small pieces.
///
/// By default it is done when somebody frees memory a second later, and nobody may. And the
/// allocator asks for huge pages, which are kept whole for the little that is left in them.
pub(crate) fn give_back_at_once() {
    // A kernel without this call has no huge pages to give.
    let _huge_pages_off = nix::sys::prctl::set_thp_disable(true);
    // Set from outside, or another option: it stays as it is.
    if purge_delay() == PURGE_DELAY_UNSET {
        set_purge_delay(0);
    }
}

#[allow(unsafe_code, reason = "the bindings have no safe form")]
fn purge_delay() -> c_long {
    // SAFETY: reads a number from a table; one that is beyond its end gives 0.
    unsafe { mi_option_get(PURGE_DELAY) }
}

#[allow(unsafe_code, reason = "the bindings have no safe form")]
fn set_purge_delay(millis: c_long) {
    // SAFETY: writes a number to a table, atomically; one that is beyond its end is ignored.
    unsafe { mi_option_set(PURGE_DELAY, millis) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_at_once() {
        assert_eq!(purge_delay(), PURGE_DELAY_UNSET, "another option by now?");
        give_back_at_once();
        assert_eq!(purge_delay(), 0);
        assert_eq!(nix::sys::prctl::get_thp_disable(), Ok(true));
    }
}
