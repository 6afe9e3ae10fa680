//! A start from an image: the steps of `stillpoint-capture::restart`, in order. *Lower half*, main thread.

use std::convert::Infallible;
use std::path::Path;
use stillpoint_capture::restart;
use stillpoint_image::Image;
use stillpoint_loader::place;

use stillpoint_abi::half::still as command;

use crate::launch::{self, Error};
use crate::plugins::{self, Parts};
use crate::still;

/// Goes on where the image was taken. Returns only if that is refused.
pub(crate) fn from_image(path: &Path) -> Result<Infallible, Error> {
    let image = Image::open(path)?;
    let meta = image.meta()?;
    restart::check_host(&meta)?;
    launch::block_all_signals();
    crate::exec::restored();
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
    let mut parts = Parts::rebuild(&meta);
    let mut word = parts.make().map_err(Error::Rebuild)?;
    crate::control::running();
    while let Some((round, heard)) = crate::control::next_round(word).map_err(Error::Rebuild)? {
        parts.hear(round, &heard);
        word = parts.make().map_err(Error::Rebuild)?;
    }
    let tell = |at, cmd, input: &[u8]| Ok(still::alone(at, cmd, input, 0)?.0);
    if let Some(why) = plugins::resume(command::GOES_ON, tell).into_iter().next() {
        return Err(Error::Rebuild(why));
    }
    restart::cut(&meta)?;
    stillpoint_sys::upper().generation.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    crate::callbacks::behind(true);
    restart::go(&meta)
}
