//! Exit codes of hastd and of its workers, as sysexits(3) has them.
//!
//! What an engine ends with is its own (`hast_engine::EXIT_LOST` and its neighbours).

/// The command line is wrong, or the program was not started as it has to be (EX_USAGE).
pub(crate) const USAGE: i32 = 64;
/// The provider, or what is on it, cannot be used (EX_NOINPUT).
pub(crate) const NO_INPUT: i32 = 66;
/// A thread of the worker has panicked (EX_SOFTWARE).
pub(crate) const SOFTWARE: i32 = 70;
/// The system refuses what is needed (EX_OSERR).
pub(crate) const OS_ERROR: i32 = 71;
/// The end was not orderly, or another hastd runs: another attempt may go better (EX_TEMPFAIL).
pub(crate) const TEMPORARY: i32 = 75;
/// The configuration is wrong, or asks for what cannot be (EX_CONFIG).
pub(crate) const CONFIG: i32 = 78;
