//! A start from an image: the steps of `stillpoint-capture::restart`, in order. *Lower half*, main thread.

use std::convert::Infallible;
use std::path::Path;
use stillpoint_capture::restart;
use stillpoint_image::Image;
use stillpoint_loader::place;

use stillpoint_abi::half::still as command;

use crate::launch::{self, Error};
use crate::still;

/// Goes on where the image was taken. Returns only if that is refused.
pub(crate) fn from_image(path: &Path) -> Result<Infallible, Error> {
    let image = Image::open(path)?;
    let meta = image.meta()?;
    restart::check_host(&meta)?;
    launch::block_all_signals();
    place::map_half()?;
    launch::fill_half();
    crate::tcb::start().map_err(|source| Error::System { what: "start the thread factory", source })?;
    restart::memory(&image, &meta)?;
    crate::tcb::make_way();
    drop(image);
    launch::fill_vdso_gaps();
    crate::control::start(true)
        .map_err(|source| Error::System { what: "start the control thread", source })?;
    restart::descriptors(&meta)?;
    restart::signals();
    launch::install_handlers();
    launch::leave_rseq();
    restart::threads(&meta)?;
    if still::has_front() {
        front(command::REBUILD, &[])?;
    }
    crate::control::running();
    crate::control::wait_for_all();
    if still::has_front() {
        front(command::RESUME, &[0])?;
    }
    stillpoint_sys::upper().generation.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    crate::callbacks::behind(true);
    restart::go(&meta)
}

/// Has the front make everything anew, or tell its peers what is due.
fn front(cmd: u32, input: &[u8]) -> Result<(), Error> {
    match still::alone(cmd, input) {
        Ok((0, _)) => Ok(()),
        Ok((code, text)) => Err(Error::Rebuild(format!("{} (code {code})", String::from_utf8_lossy(&text)))),
        Err(e) => Err(Error::Rebuild(e)),
    }
}
