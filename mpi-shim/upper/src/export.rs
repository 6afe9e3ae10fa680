//! How a function of ours becomes an exported one: `export!` gives it the names MPI_X and PMPI_X. Upper half.
//!
//! What a reader would get wrong: calls within the front go to the Rust function, never to the exported name. A tool
//! may stand before the exported one (that is what PMPI_ is for), and would see calls that the application never made.

/// Exports each function under its own name and, with a `P` before it, as its profiling twin. The body runs in an
/// unsafe context: the arguments are the application's, and it answers for them as it does to any MPI library.
#[macro_export]
macro_rules! export {
    ($($(#[$m:meta])* fn $name:ident($($a:ident: $t:ty),* $(,)?) -> $r:ty $body:block)*) => { $(
        $(#[$m])*
        #[allow(non_snake_case, reason = "the standard's name")]
        #[allow(dead_code, reason = "used by its exported twins")]
        #[allow(clippy::too_many_arguments, reason = "the standard's prototype")]
        #[inline(always)]
        pub(crate) unsafe fn $name($($a: $t),*) -> $r {
            // SAFETY: the application passes what the standard asks for.
            #[allow(unused_unsafe, reason = "some bodies only use safe calls")]
            #[allow(clippy::macro_metavars_in_unsafe, reason = "the body is unsafe code of the front, so written")]
            unsafe { $body }
        }
        const _: () = {
            #[unsafe(export_name = stringify!($name))]
            unsafe extern "C" fn plain($($a: $t),*) -> $r {
                // SAFETY: handed on.
                unsafe { $name($($a),*) }
            }
            #[unsafe(export_name = concat!("P", stringify!($name)))]
            unsafe extern "C" fn profiling($($a: $t),*) -> $r {
                // SAFETY: handed on.
                unsafe { $name($($a),*) }
            }
        };
    )* };
}
