//! A disk in memory that remembers in which order it was written, and what of that a power cut may leave.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;

use super::Random;

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

/// One thing that was done to the disk.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
    Sync,
}

/// Which syncs the disk swallows: the drill must notice each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncFault {
    /// None: the disk is honest.
    #[default]
    Honest,
    /// All.
    DropAll,
    /// Every other one, beginning with the first: a commit syncs twice, so this drops the sync of the data or that of the
    /// commit mark.
    DropOdd,
    /// Every other one, beginning with the second.
    DropEven,
}

#[derive(Debug, Default)]
struct State {
    data: Vec<u8>,
    log: Vec<Op>,
    syncs: u64,
}

/// The disk; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    fault: SyncFault,
}

impl Disk {
    pub(crate) fn new(data: Vec<u8>, fault: SyncFault) -> Self {
        Self { state: Arc::new(Mutex::new(State { data, ..State::default() })), fault }
    }

    /// Everything on it, as a process would read it back.
    pub(crate) fn contents(&self) -> Vec<u8> {
        self.state.lock().data.clone()
    }

    /// How much was done to it so far.
    pub(super) fn position(&self) -> usize {
        self.state.lock().log.len()
    }

    pub(super) fn log(&self) -> Vec<Op> {
        self.state.lock().log.clone()
    }
}

fn write_at(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[offset..end].copy_from_slice(bytes);
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().data.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock();
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|offset| state.data.get(offset..offset.checked_add(out.len())?))
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut state = self.state.lock();
        state.data.resize(len, 0);
        state.log.push(Op::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.syncs += 1;
        let swallowed = match self.fault {
            SyncFault::Honest => false,
            SyncFault::DropAll => true,
            SyncFault::DropOdd => state.syncs % 2 == 1,
            SyncFault::DropEven => state.syncs.is_multiple_of(2),
        };
        if !swallowed {
            state.log.push(Op::Sync);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut state = self.state.lock();
        write_at(&mut state.data, offset, data);
        state.log.push(Op::Write { offset, data: data.to_vec() });
        Ok(())
    }
}

/// What of the unsynced writes reached the disk when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// All, in order.
    Prefix,
    /// All but the last, of which some sectors.
    Torn,
    /// Any of them, whole or in part, as a disk with a cache reorders them.
    Reordered,
}

pub(super) const CUTS: [Cut; 3] = [Cut::Prefix, Cut::Torn, Cut::Reordered];

/// The disk after `log` was cut at `at`, starting from `base`.
pub(super) fn image(base: &[u8], log: &[Op], at: usize, cut: Cut, random: &mut Random) -> Vec<u8> {
    let synced = log[..at].iter().rposition(|op| matches!(op, Op::Sync)).map_or(0, |index| index + 1);
    let mut data = base.to_vec();
    for op in &log[..synced] {
        apply(&mut data, op);
    }
    for (index, op) in log[synced..at].iter().enumerate() {
        let last = synced + index + 1 == at;
        match cut {
            Cut::Prefix => apply(&mut data, op),
            Cut::Torn if last => tear(&mut data, op, random),
            Cut::Torn => apply(&mut data, op),
            Cut::Reordered => match random.below(4) {
                0 => {}
                1 => tear(&mut data, op, random),
                _ => apply(&mut data, op),
            },
        }
    }
    data
}

fn apply(data: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { offset, data: bytes } => write_at(data, *offset, bytes),
        Op::SetLen(len) => data.resize(*len, 0),
        Op::Sync => {}
    }
}

/// Applies some of an operation's sectors; a change of length happens or does not.
fn tear(data: &mut Vec<u8>, op: &Op, random: &mut Random) {
    match op {
        Op::Write { offset, data: bytes } => {
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if random.below(2) == 0 {
                    write_at(data, offset + index * SECTOR, sector);
                }
            }
        }
        op if random.below(2) == 0 => apply(data, op),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Op> {
        let write = |offset, byte: u8, len| Op::Write { offset, data: vec![byte; len] };
        vec![write(0, 1, 4), Op::Sync, write(0, 2, 2), Op::SetLen(8), write(4, 3, 4)]
    }

    #[test]
    fn prefixes_apply_in_order() {
        let check = |at: usize, expected: &[u8]| {
            assert_eq!(image(&[9], &log(), at, Cut::Prefix, &mut Random::new(1)), expected, "at {at}");
        };
        check(0, &[9]);
        check(2, &[1, 1, 1, 1]);
        check(3, &[2, 2, 1, 1]);
        check(4, &[2, 2, 1, 1, 0, 0, 0, 0]);
        check(5, &[2, 2, 1, 1, 3, 3, 3, 3]);
    }

    #[test]
    fn reordering_spares_what_was_synced() {
        for seed in 0..50 {
            let image = image(&[], &log(), 5, Cut::Reordered, &mut Random::new(seed));
            assert!(image.len() >= 4 && image[2..4] == [1, 1], "{image:?}");
        }
    }

    #[test]
    fn swallowed_syncs_leave_no_trace() {
        let check = |fault, expected| {
            let disk = Disk::new(Vec::new(), fault);
            for _ in 0..4 {
                disk.sync_data().unwrap();
            }
            assert_eq!(disk.position(), expected, "{fault:?}");
        };
        check(SyncFault::Honest, 4);
        check(SyncFault::DropAll, 0);
        check(SyncFault::DropOdd, 2);
        check(SyncFault::DropEven, 2);
    }
}
