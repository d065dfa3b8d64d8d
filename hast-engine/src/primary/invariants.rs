//! What holds after every event, whatever happened: checked by debug builds, the simulator and the fuzz targets.

use super::Primary;
use crate::rule::{Rule, keeps};
use crate::types::Op;

impl Primary {
    /// Whether the state is one that can be: what each set of extents says agrees with the others (durability.md).
    ///
    /// # Errors
    /// Which rule is broken, and by which extent or request.
    pub fn check(&self) -> Result<(), String> {
        self.check_extents()?;
        self.check_requests()
    }

    fn check_extents(&self) -> Result<(), String> {
        let (stale, open) = (&self.sync.stale, self.map.to_synchronise());
        none("stale, but not to synchronise", stale.iter().filter(|at| !open.contains(*at)))?;
        let turning = self.turning.iter().filter(|at| open.contains(*at) && !stale.contains(*at));
        none("turning and to synchronise, but not stale", turning)?;
        let lone = self.sync.lone.iter().filter(|at| !stale.contains(*at));
        none("on the secondary alone, but not stale", lone)?;
        let (known, recorded) = (&self.sync.known, &self.sync.recorded);
        none("known to be recorded, but not recorded", known.iter().filter(|at| !recorded.contains(*at)))?;
        if !self.link.is_up() {
            none("turning without a secondary", self.turning.iter())?;
        }
        if self.is_in_step() {
            none("in step, but to synchronise", open.iter())?;
        }
        if self.detachment.is_detached() && stale.count() < stale.len() {
            return Err("the disk is given up, but not all of it stale".into());
        }
        Ok(())
    }

    /// Requests are found by what they wait for. M1: the bits of what was given to disk or peer are on disk. (After a
    /// map write that failed they still are, being in what was there before and in what was written, but the map does
    /// not count on it.)
    fn check_requests(&self) -> Result<(), String> {
        let guarded = keeps(Rule::M1) && keeps(Rule::L4) && !self.map_io.doubtful;
        for (key, request) in &self.requests {
            if !self.waiting.agrees(*key, request) {
                return Err(format!("not found by what it waits for: {request:?}"));
            }
            let bare = request.is_with_the_disk() && !self.map.is_durable(request.extents());
            if guarded && bare && !matches!(request.op(), Op::Read { .. }) {
                return Err(format!("M1: {request:?}"));
            }
        }
        Ok(())
    }
}

/// No extent is like this.
fn none(what: &str, mut extents: impl Iterator<Item = u32>) -> Result<(), String> {
    match extents.next() {
        Some(extent) => Err(format!("{what}: extent {extent}")),
        None => Ok(()),
    }
}
