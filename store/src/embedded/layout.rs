//! How the store's data lies in redb's tables: definitions, the record codec and the counters.
//!
//! Multi-version, as etcd's: `versions` holds every kept write by revision, `keys` points each key at its newest one, and
//! each record points back at the one it replaced. So a value is stored once, history costs no copy, and a read at an
//! older revision walks back from the newest version. A deletion is a record too (a tombstone) until compaction passes
//! it. There is no I/O policy here.

use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};

use super::fault::{Fault, Inner};
use crate::{Event, KeyValue, Revision};

/// Key to `(create_revision, mod_revision)`; `create_revision` 0 marks a tombstone.
pub(super) const KEYS: TableDefinition<'static, &str, (u64, u64)> = TableDefinition::new("keys");
/// Revision to [`Record`].
pub(super) const VERSIONS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("versions");
/// [`Counters`] and the format by name.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// The one format this program reads and writes.
pub(super) const FORMAT: u64 = 1;
pub(super) const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";
const META_COMPACTED: &str = "compacted";
const META_WRITTEN: &str = "written_bytes";
const META_COMPACTED_WRITTEN: &str = "compacted_written_bytes";
const META_LIVE: &str = "live_bytes";

/// Bytes of a record in front of its key.
const HEADER: usize = 37;

/// What the store knows about itself; one row each in [`META`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Revision of the last write.
    pub(super) revision: Revision,
    /// Reads at this revision and later are possible; events after it can be replayed.
    pub(super) compacted: Revision,
    /// Bytes of all records ever written.
    pub(super) written: u64,
    /// [`Counters::written`] as it was at `compacted`: the difference is the history's size.
    pub(super) compacted_written: u64,
    /// Bytes of the records now in [`VERSIONS`].
    pub(super) live: u64,
}

impl Counters {
    pub(super) fn load(meta: &impl ReadableTable<&'static str, u64>) -> Inner<Self> {
        let row = |name: &'static str| -> Inner<u64> {
            let value = meta.get(name)?.ok_or_else(|| Fault::damaged(format!("the counter {name} is missing")))?;
            Ok(value.value())
        };
        let counters = Self {
            revision: row(META_REVISION)?,
            compacted: row(META_COMPACTED)?,
            written: row(META_WRITTEN)?,
            compacted_written: row(META_COMPACTED_WRITTEN)?,
            live: row(META_LIVE)?,
        };
        if counters.compacted > counters.revision || counters.compacted_written > counters.written {
            return Err(Fault::damaged(format!("the counters contradict each other: {counters:?}")));
        }
        Ok(counters)
    }

    /// Writes the rows that differ from `before`; all of them without it.
    pub(super) fn save(&self, meta: &mut redb::Table<'_, &'static str, u64>, before: Option<&Self>) -> Inner<()> {
        let rows = |counters: &Self| {
            [
                (META_REVISION, counters.revision),
                (META_COMPACTED, counters.compacted),
                (META_WRITTEN, counters.written),
                (META_COMPACTED_WRITTEN, counters.compacted_written),
                (META_LIVE, counters.live),
            ]
        };
        for (index, (name, value)) in rows(self).into_iter().enumerate() {
            if before.is_none_or(|before| rows(before)[index].1 != value) {
                meta.insert(name, value)?;
            }
        }
        Ok(())
    }
}

/// One write as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) key: &'a str,
    /// `None` for a tombstone.
    pub(super) value: Option<&'a [u8]>,
    /// Revision of the record this one replaced; 0 if there was none.
    pub(super) previous: Revision,
    pub(super) create_revision: Revision,
    /// Milliseconds since the Unix epoch.
    pub(super) at_ms: u64,
    /// [`Counters::written`] after this record.
    pub(super) written: u64,
}

impl<'a> Record<'a> {
    /// Encoded length.
    pub(super) fn len(key: &str, value: Option<&[u8]>) -> u64 {
        (HEADER + key.len() + value.map_or(0, <[u8]>::len)) as u64
    }

    /// Appends the encoding to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.value.is_none()));
        for number in [self.previous, self.create_revision, self.at_ms, self.written] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        // Keys are bounded by MAX_ENTRY_BYTES, far below u32::MAX.
        out.extend_from_slice(&(self.key.len() as u32).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(self.value.unwrap_or_default());
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Inner<Self> {
        Self::decode_checked(bytes).ok_or_else(|| Fault::damaged("a record is malformed".to_owned()))
    }

    fn decode_checked(bytes: &'a [u8]) -> Option<Self> {
        let number = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)) };
        let key_len = u32::from_le_bytes(bytes.get(33..HEADER)?.try_into().ok()?) as usize;
        let key_end = HEADER.checked_add(key_len)?;
        let key = std::str::from_utf8(bytes.get(HEADER..key_end)?).ok()?;
        let value = match bytes.first()? {
            0 => Some(bytes.get(key_end..)?),
            1 => None,
            _ => return None,
        };
        Some(Self {
            key,
            value,
            previous: number(1)?,
            create_revision: number(9)?,
            at_ms: number(17)?,
            written: number(25)?,
        })
    }

    /// The stored key as the seam shows it; `None` for a tombstone.
    pub(super) fn key_value(&self, revision: Revision) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.key.to_owned(),
            value: Bytes::copy_from_slice(self.value?),
            create_revision: self.create_revision,
            mod_revision: revision,
        })
    }

    pub(super) fn event(&self, revision: Revision) -> Event {
        match self.key_value(revision) {
            Some(kv) => Event::Put(kv),
            None => Event::Delete { key: self.key.to_owned(), revision },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_codec() {
        for value in [None, Some(&b""[..]), Some(b"value")] {
            let record = Record { key: "/a/ü", value, previous: 1, create_revision: 2, at_ms: u64::MAX, written: 4 };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(bytes.len() as u64, Record::len(record.key, value));
            assert_eq!(Record::decode(&bytes).unwrap(), record);
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        let record = Record { key: "/key", value: Some(b"v"), previous: 1, create_revision: 2, at_ms: 3, written: 4 };
        let mut good = Vec::new();
        record.encode(&mut good);
        let check = |name: &str, bytes: &[u8]| assert!(Record::decode(bytes).is_err(), "{name}");
        check("empty", &[]);
        check("cut in the header", &good[..20]);
        check("cut in the key", &good[..HEADER + 2]);
        let mut bad = good.clone();
        bad[0] = 7;
        check("unknown kind", &bad);
        let mut bad = good.clone();
        bad[33..37].copy_from_slice(&u32::MAX.to_le_bytes());
        check("key longer than the record", &bad);
        let mut bad = good;
        bad[HEADER] = 0xff;
        check("key is not UTF-8", &bad);
    }
}
