//! A door into what becomes of a command's answers, for the fuzz targets; see [`crate::fuzzing`].

use super::{
    LineFormat, Stdin,
    feed::Fed,
    spool::{Limits, Spool},
};
use crate::handler::{Batch, HandlerError};

/// What is wrong with what a command printed that has exited with 0, if anything is.
pub(crate) async fn answer(
    batch: &Batch,
    is_plain: bool,
    stdout: &[u8],
    most_bytes: Option<u64>,
) -> Result<Option<String>, HandlerError> {
    let format = if is_plain {
        LineFormat::Plain
    } else {
        LineFormat::Json
    };
    let mut fed = Fed::default();
    let mut stdin = Some(Stdin::new(tokio::io::sink(), false));
    fed.feed(batch, format, &mut stdin).await?;
    let mut spool = Spool::new(None, batch.id(), batch.unsettled()).await?;
    let limits = Limits::new(batch, format, most_bytes);
    spool.fill(stdout, &limits).await?;
    let answers = spool.keep(None, fed).await?;
    answers.record(batch, format).await
}
