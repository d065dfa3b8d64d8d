//! Who has what when the serving node has died: taking over, the return of the other node, and what must be true then.

use hast_nbd::client::{Client, ClientError};
use hast_tests::{Context, Failure};

use super::disk::SECTOR;
use super::field::{Field, Left};
use super::ledger::{Ledger, Parting};
use crate::torture::clients::ask;
use crate::torture::field::Side;
use crate::torture::record::What;
use crate::torture::{Mode, RESOURCE};

/// One read of the whole device in bytes: a bad disk may let some of them through.
const BLOCK: usize = 64 << 10;

impl Field {
    /// The node that serves is dead and the other one takes over, without -f. False: it refused, since it knows that it
    /// is out of date, and the dead one is back.
    ///
    /// By the counts on the disks either the dead node has what the other one lacks, which they will find when they
    /// meet; or nobody will ever find anything, and then nothing may be missing that the mode promises.
    ///
    /// # Errors
    /// What is read of the new primary is not what it may be; or it refuses although it `must` not.
    pub(super) fn take_over(&mut self, must: bool) -> Result<bool, Failure> {
        let (old, new) = (self.serving, self.serving.other());
        self.record.wait_nothing_open()?;
        self.start(new)?;
        let ahead = self.counts(old)?.0 > self.counts(new)?.1;
        let before = self.record.meanwhile(|ledger, _| ledger.clone());
        let left = self.part(old, new, ahead);
        self.say(format!(
            "{} takes over; by the counts {} has {}",
            self.node(new).name(),
            self.node(old).name(),
            if ahead { "more" } else { "nothing more" }
        ));
        if !self.promote(new)? {
            self.say("it refuses");
            self.count("refusals");
            if must {
                return Failure::because("a secondary that was in step and kept power refuses to take over");
            }
            self.record.meanwhile(|ledger, _| *ledger = before);
            self.resume()?;
            self.set_role(new, "secondary")?;
            return Ok(false);
        }
        self.count("fail-overs");
        self.serving = new;
        self.left = Some(left);
        self.read_everything().context("after the failover")?;
        Ok(true)
    }

    /// Makes two histories of one: the new primary's becomes the record's, and the old one's is given back.
    fn part(&mut self, old: Side, new: Side, ahead: bool) -> Left {
        let everything = Parting { at: self.in_step, forgets: true };
        let parting = self.away.unwrap_or(everything);
        // A faulty disk may have missed something while it was connected.
        let parting = if self.faulty { everything } else { parting };
        let (old_forgot, new_forgot) = (self.forgot(old), self.forgot(new));
        let unconfirmed = self.mode != Mode::Fullsync;
        self.record.meanwhile(|ledger, now| {
            let apart = ledger.is_apart_since(Parting { forgets: parting.forgets || unconfirmed, ..parting });
            let mut left = ledger.clone();
            left.abandon(now);
            if old_forgot || (!ahead && (unconfirmed || new_forgot)) {
                left.forget_unflushed();
            }
            if ahead {
                *ledger = ledger.of_one_that_missed(parting, now);
            } else {
                ledger.abandon(now);
                if unconfirmed || new_forgot {
                    ledger.forget_unflushed();
                }
            }
            Left { ledger: left, fork: now, ahead, apart }
        })
    }

    /// The node that left comes back as secondary.
    ///
    /// # Errors
    /// They do not find each other, or something is lost, or a split-brain is told of that is none, or not told of.
    pub(super) fn reunite(&mut self, left: Left) -> Result<(), Failure> {
        let old = self.serving.other();
        self.silence()?;
        self.start(old)?;
        self.set_role(old, "secondary")?;
        self.wait("the nodes to be in step, or to find a split-brain", |field| {
            Ok(field.is_split()? || field.is_in_step()?)
        })?;
        let (written, active) = self.record.meanwhile(|ledger, _| {
            (
                ledger.is_written_since(left.fork),
                ledger.is_apart_since(Parting { at: left.fork, forgets: false }),
            )
        });
        if self.is_split()? {
            self.say("split-brain");
            self.count("split-brains");
            if !left.ahead || !left.apart || !active {
                return Failure::because(format!(
                    "a split-brain without two nodes that were written apart: by the counts {}, by the record {}, \
                     the one that serves {}",
                    left.ahead, left.apart, active
                ));
            }
            return self.choose(left);
        }
        if left.ahead && written {
            return Failure::because("both nodes were written apart, and are in step without a split-brain");
        }
        if left.ahead {
            // The newer data are those of the node that came back.
            self.record.meanwhile(|ledger, _| *ledger = left.ledger);
            self.wait_in_step()?;
            return self.verify(None);
        }
        self.wait_in_step()?;
        self.verify(Some(&left))
    }

    /// Decides who survives a split-brain, as docs/failover.md says.
    fn choose(&mut self, left: Left) -> Result<(), Failure> {
        let (serving, old) = (self.serving, self.serving.other());
        // What is stale on the survivor it can take from the other one alone, with whatever was written there since: so
        // the one with a bad disk is no survivor.
        let loser = match (self.is_stale(serving)?, self.is_stale(old)?) {
            (true, false) => serving,
            (false, true) => old,
            _ if self.random.one_in(2) => serving,
            _ => old,
        };
        self.say(format!("{} gives its changes up", self.node(loser).name()));
        if loser == serving {
            self.set_role(serving, "secondary")?;
            self.record.meanwhile(|ledger, _| *ledger = left.ledger);
            self.serving = old;
        }
        self.node(loser).ctl(&["discard", RESOURCE])?;
        if loser == serving {
            self.set_role(old, "primary")?;
        }
        // Until they have met again both remember.
        self.wait("the nodes to be in step after a split-brain", Field::is_in_step)?;
        self.wait_in_step()?;
        self.verify(None)
    }

    /// Nothing writes, and the nodes say that they are in step: whatever was flushed is on both disks, durably, and both
    /// hold the same, which the record allows; and with it that of a node which served before, wherever nobody wrote
    /// since.
    ///
    /// # Errors
    /// Something of that is not so.
    pub(super) fn verify(&mut self, left: Option<&Left>) -> Result<(), Failure> {
        self.silence()?;
        self.wait("the nodes to be clean", |field| {
            let primary = field.view(field.serving)?;
            let kept = primary.number("keepdirty")?.saturating_mul(primary.number("extentsize")?);
            Ok(field.is_in_step()? && primary.number("dirty")? <= kept)
        })?;
        let client = self.client()?;
        // The first flush after a disk was bad tells of one that failed when nobody waited for it.
        let mut flushed = ask(&*self.record, &client, What::Flush);
        if !flushed && self.faulty {
            flushed = ask(&*self.record, &client, What::Flush);
        }
        if !flushed {
            return Failure::because("nothing is wrong any more, and a flush fails");
        }
        let data = self.read_with(&client, false)?;
        client.disconnect().context("disconnect")?;
        self.compare_disks(&data)?;
        self.record.meanwhile(|ledger, now| {
            if let Some(left) = left {
                compare_histories(left, ledger, &data)?;
            }
            ledger.settle(&data, now);
            Ok(())
        })
    }

    /// Both hold this, and would after a loss of power.
    fn compare_disks(&self, data: &[u8]) -> Result<(), Failure> {
        for side in Side::BOTH {
            let name = self.node(side).name();
            let begin = self.data_offset(side)?;
            let start = usize::try_from(begin)?;
            self.disk(side).disk(|disk| {
                let seen = disk.seen().get(start..).unwrap_or_default();
                let differs =
                    seen.chunks(SECTOR).zip(data.chunks(SECTOR)).position(|(seen, data)| seen != data);
                if let Some(at) = differs {
                    return Failure::because(format!(
                        "sector {at} on the disk of {name} is not what the device has"
                    ));
                }
                match disk.first_unflushed(begin) {
                    Some(at) => Failure::because(format!(
                        "sector {} is flushed, and {name} would lose it with its power",
                        at.saturating_sub(start / SECTOR)
                    )),
                    None => Ok(()),
                }
            })?;
        }
        Ok(())
    }

    /// Where the data area of a node's provider begins.
    pub(super) fn data_offset(&self, side: Side) -> Result<u64, Failure> {
        Ok(hast_tests::disk::metadata(&self.node(side).provider(RESOURCE))?.localoff)
    }

    /// Reads the whole device, or as much as a bad disk lets through.
    ///
    /// # Errors
    /// Something in it is not what it may be.
    pub(super) fn read_everything(&self) -> Result<(), Failure> {
        let client = self.client()?;
        self.read_with(&client, self.faulty)?;
        client.disconnect().context("disconnect")
    }

    /// Reads all of it; what the device refuses is zeros, if it may refuse.
    fn read_with(&self, client: &Client, may_refuse: bool) -> Result<Vec<u8>, Failure> {
        let size = usize::try_from(client.size())?;
        let mut all = Vec::with_capacity(size);
        while all.len() < size {
            let (first, begun) = (all.len() / SECTOR, self.record.now());
            let length = BLOCK.min(size - all.len());
            let data = match client.read(all.len() as u64, length) {
                Err(ClientError::Command { .. }) if may_refuse => {
                    all.resize(all.len() + length, 0);
                    continue;
                }
                data => data.context("read")?,
            };
            self.record.compare(first, &data, Some(begun))?;
            all.extend_from_slice(&data);
        }
        Ok(all)
    }
}

/// The nodes say that neither has what the other one lacks. So what the one that left had been told of is there too.
fn compare_histories(left: &Left, ledger: &Ledger, data: &[u8]) -> Result<(), Failure> {
    for (at, bytes) in data.chunks(SECTOR).enumerate() {
        if !ledger.is_touched_since(at, left.fork) {
            left.ledger.check(at, bytes, left.fork).map_err(|error| {
                Failure::new(format!(
                    "what a node held that came back is overwritten without a word: {error}"
                ))
            })?;
        }
    }
    Ok(())
}
