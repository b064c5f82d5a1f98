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
    /// Of the store: segments are freed, and no baseline is written in their place.
    DropBaseline,
    /// Of the store: fences begin again at one when it is opened.
    ReuseFence,
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
