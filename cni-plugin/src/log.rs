//! Logs, on stderr: stdout belongs to the result.

use tracing::level_filters::LevelFilter;

/// Starts logging at the configured level; an unknown one is as none.
pub(crate) fn start(level: Option<&str>) {
    let level = level
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::WARN);
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(level);
    // A second start would be a defect; it must not fail a call.
    let _ = subscriber.try_init();
}
