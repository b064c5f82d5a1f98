//! Mistakes that tests and fuzz targets plant, to see that they would be found. Elsewhere there are none.

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::queue::journal) enum Fault {
    /// A group is answered once it is written.
    AnswerBeforeSync,
    /// The header of a segment is written, not synced.
    SkipHeaderSync,
    /// The names of new files are not synced.
    SkipFolderSync,
    /// The old segment names the new one before that has its header.
    ContinueBeforeHeader,
    /// Segments are freed before the root that frees them is stored.
    FreeBeforeRoot,
    /// The youngest of those freed is reused first.
    RecycleOutOfOrder,
    /// Segments are reused while they are read.
    RecycleUnderReader,
    /// What could be read of the log is not written again.
    TrustWhatIsReadable,
    /// The root that could be read is not written again.
    TrustTheRoot,
    /// Checksums start from nothing, and nobody looks at what should come next.
    AcceptStale,
    /// In a recycled file the sector behind a group is left as it was.
    LeaveTheEnd,
    /// A group that was begun is left where it is.
    KeepTheTail,
    /// A sync that failed is tried again, and what it says then is believed.
    RetrySync,
    /// Events are taken as they are read.
    TrustEvents,
    /// Of the store: payloads are served as they are read.
    TrustPayloads,
    /// Of the store: segments are freed, and no baseline is written in their place.
    DropBaseline,
    /// Of the store: fences begin again at one when it is opened.
    ReuseFence,
    /// Of the group commit: callers are told before what they did can be seen.
    AnswerBeforePublishing,
    /// Of the group commit: who begins to wait looks before it says so, and not again.
    LookOnce,
    /// Of the group commit: the writer is not told of a group that callers share.
    ForgetTheWriter,
    /// Of the group commit: a lone caller that goes away does not leave its group to the writer.
    LeaveTheGroup,
    /// Of the group commit: those who wait are not told that the store is poisoned.
    ForgetTheWaiting,
    /// Of the group commit: those who wait are not told that there is no space.
    ForgetTheRefused,
    /// Of the group commit: the writer is not told that the store is closed.
    CloseInSilence,
}

/// Whether this one is planted in this thread.
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::queue::journal) fn is(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Never.
#[cfg(not(any(test, feature = "fuzzing")))]
pub(in crate::queue::journal) const fn is(_: Fault) -> bool {
    false
}

/// Plants a fault in this thread for good.
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::queue::journal) fn plant(fault: Fault) {
    PLANTED.set(Some(fault));
}

#[cfg(any(test, feature = "fuzzing"))]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}
