//! hast-failover.conf: groups, and what belongs to each (hast-failover(8), CONFIGURATION).
//!
//! Owns the file's form and what may be written in it. A group is read when it is worked on: a mistake in one group keeps
//! no other one from its role.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::address::Address;

/// A mistake, with the line where it was noticed.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("line {at}: {text}")]
pub(crate) struct Mistake {
    at: Place,
    text: String,
}

/// Where a mistake was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Line(usize),
    End,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(number) => write!(f, "{number}"),
            Place::End => f.write_str("end"),
        }
    }
}

/// What repairs a file system before it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Preen,
    Full,
    Never,
}

/// Where the block device comes from on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attach {
    Auto,
    Hastd,
    Nbd,
    Fuse,
    None,
}

/// Whether a promotion waits until the secondary's worker has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Auto,
    Yes,
    No,
}

/// What lies on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Nothing,
    Pool(String),
    Files { fstype: String, mount: PathBuf, options: String },
}

/// What is for the whole file.
#[derive(Clone, Debug)]
pub(crate) struct General {
    pub(crate) state_dir: PathBuf,
    pub(crate) hast_conf: Option<PathBuf>,
    pub(crate) node: Option<String>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) lock_timeout: Duration,
}

/// A group: what moves together.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) resources: Vec<String>,
    pub(crate) content: Content,
    pub(crate) check: Check,
    pub(crate) services: Vec<String>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) carp: Vec<String>,
    pub(crate) vrrp: Vec<String>,
    pub(crate) attach: Attach,
    pub(crate) wait_secondary: Wait,
    pub(crate) role_timeout: Duration,
    pub(crate) device_timeout: Duration,
    pub(crate) service_timeout: Duration,
    pub(crate) unmount_timeout: Duration,
    pub(crate) check_timeout: Duration,
    pub(crate) nbd_dir: PathBuf,
    pub(crate) device_dir: PathBuf,
}

/// The file, taken apart but not yet understood.
#[derive(Debug, Default)]
pub(crate) struct File {
    groups: Vec<String>,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    number: usize,
    /// The group; none before the first one.
    section: Option<String>,
    key: String,
    value: String,
}

/// The texts of all settings, as the file or the defaults have them.
#[derive(Debug)]
struct Values {
    general: General,
    group: Group,
    fstype: String,
    pool: String,
    mount: String,
    options: String,
}

impl File {
    /// Takes a file apart.
    ///
    /// # Errors
    ///
    /// A line is neither a group nor a setting, or a group is there twice.
    pub(crate) fn parse(text: &str) -> Result<File, Mistake> {
        let mut file = File::default();
        let mut section: Option<String> = None;
        for (index, line) in text.lines().enumerate() {
            let number = index.saturating_add(1);
            let wrong = |text: String| Mistake { at: Place::Line(number), text };
            let line = trim(line.trim_end_matches('\r'));
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
                    return Err(wrong(
                        "a group's name has letters, digits, '.', '_' and '-' only".to_owned(),
                    ));
                }
                if file.groups.iter().any(|group| group == name) {
                    return Err(wrong(format!("the group '{name}' is here twice")));
                }
                file.groups.push(name.to_owned());
                section = Some(name.to_owned());
            } else if let Some((key, value)) = line.split_once('=') {
                let (key, value) = (trim(key).to_owned(), trim(without_comment(value)).to_owned());
                file.lines.push(Line { number, section: section.clone(), key, value });
            } else {
                return Err(wrong(format!("neither [group] nor 'setting = value': {line}")));
            }
        }
        Ok(file)
    }

    /// The names of all groups, in their order.
    pub(crate) fn groups(&self) -> &[String] {
        &self.groups
    }

    /// What is for the whole file.
    ///
    /// # Errors
    ///
    /// A setting before the first group is wrong.
    pub(crate) fn general(&self) -> Result<General, Mistake> {
        self.values("", None).map(|values| values.general)
    }

    /// A group. `bare`: the name is a resource's; only role and device count, and the group need not be there.
    ///
    /// # Errors
    ///
    /// A setting of the group or one before the first group is wrong.
    pub(crate) fn group(&self, name: &str, bare: bool) -> Result<Group, Mistake> {
        let values = self.values(name, Some(name))?;
        let mut group = values.group;
        if bare {
            group.resources = vec![name.to_owned()];
            group.services.clear();
            group.addresses.clear();
            return Ok(group);
        }
        let wrong = |text: String| Mistake { at: Place::End, text };
        if group.resources.is_empty() {
            group.resources.push(name.to_owned());
        }
        group.content = match values.fstype.as_str() {
            "none" => Content::Nothing,
            "zfs" if values.pool.is_empty() => {
                return Err(wrong(format!("the group '{name}' has zfs, but no pool")));
            }
            "zfs" => Content::Pool(values.pool),
            _ if values.mount.is_empty() => {
                return Err(wrong(format!("the group '{name}' has a file system, but no mount")));
            }
            _ => Content::Files {
                fstype: values.fstype,
                mount: PathBuf::from(values.mount),
                options: values.options,
            },
        };
        Ok(group)
    }

    /// What the lines before the first group, and those of `section`, say.
    fn values(&self, name: &str, section: Option<&str>) -> Result<Values, Mistake> {
        let mut values = Values::new(name);
        for line in &self.lines {
            if line.section.is_none() || line.section.as_deref() == section {
                let result = values.set(&line.key, &line.value, line.section.is_some());
                result.map_err(|text| Mistake { at: Place::Line(line.number), text })?;
            }
        }
        Ok(values)
    }
}

/// Without the blanks around it.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// A comment begins with a '#' after a blank.
fn without_comment(value: &str) -> &str {
    let begins = value
        .char_indices()
        .zip(value.chars().skip(1))
        .find_map(|((at, blank), next)| ((blank == ' ' || blank == '\t') && next == '#').then_some(at));
    begins.and_then(|at| value.get(..at)).unwrap_or(value)
}

const LONGEST: u32 = u32::MAX;

impl Values {
    fn new(name: &str) -> Values {
        let seconds = Duration::from_secs;
        let general = General {
            state_dir: PathBuf::from("/var/run/hast-failover"),
            hast_conf: None,
            node: None,
            log: None,
            lock_timeout: seconds(300),
        };
        let group = Group {
            name: name.to_owned(),
            resources: Vec::new(),
            content: Content::Nothing,
            check: Check::Preen,
            services: Vec::new(),
            addresses: Vec::new(),
            carp: Vec::new(),
            vrrp: Vec::new(),
            attach: Attach::Auto,
            wait_secondary: Wait::Auto,
            role_timeout: seconds(60),
            device_timeout: seconds(30),
            service_timeout: seconds(60),
            unmount_timeout: seconds(10),
            check_timeout: seconds(3600),
            nbd_dir: PathBuf::from("/var/run/hast"),
            device_dir: PathBuf::from("/dev/hast"),
        };
        let nothing = String::new;
        Values {
            general,
            group,
            fstype: "none".to_owned(),
            pool: nothing(),
            mount: nothing(),
            options: nothing(),
        }
    }

    fn set(&mut self, key: &str, value: &str, in_group: bool) -> Result<(), String> {
        if value.chars().any(char::is_control) {
            return Err(format!("{key} has a control character"));
        }
        if in_group && matches!(key, "state_dir" | "hast_conf" | "node" | "lock_timeout" | "log") {
            return Err(format!("{key} is for the whole file and comes before the first group"));
        }
        match key {
            "state_dir" => self.general.state_dir = path(key, value)?,
            "hast_conf" => self.general.hast_conf = Some(path(key, value)?),
            "node" => self.general.node = Some(word(key, value)?),
            "log" => self.general.log = Some(path(key, value)?),
            "lock_timeout" => self.general.lock_timeout = time(key, value)?,
            _ => self.set_of_group(key, value)?,
        }
        Ok(())
    }

    fn set_of_group(&mut self, key: &str, value: &str) -> Result<(), String> {
        let group = &mut self.group;
        match key {
            "resources" => group.resources = names(key, value)?,
            "services" => group.services = names(key, value)?,
            "carp" => group.carp = names(key, value)?,
            "vrrp" => group.vrrp = names(key, value)?,
            "address" => {
                let parsed: Result<Vec<Address>, String> =
                    names(key, value)?.iter().map(|one| one.parse()).collect();
                group.addresses = parsed?;
            }
            "fstype" => self.fstype = word(key, value)?,
            "pool" => {
                self.pool = word(key, value)?;
                self.fstype = "zfs".to_owned();
            }
            "mount" => self.mount = path(key, value)?.into_os_string().into_string().unwrap_or_default(),
            "options" => value.clone_into(&mut self.options),
            "check" => {
                let known = [("preen", Check::Preen), ("full", Check::Full), ("never", Check::Never)];
                group.check = one_of(key, value, &known)?;
            }
            "attach" => {
                let known = [
                    ("auto", Attach::Auto),
                    ("hastd", Attach::Hastd),
                    ("nbd", Attach::Nbd),
                    ("fuse", Attach::Fuse),
                    ("none", Attach::None),
                ];
                group.attach = one_of(key, value, &known)?;
            }
            "wait_secondary" => {
                let known = [("auto", Wait::Auto), ("yes", Wait::Yes), ("no", Wait::No)];
                group.wait_secondary = one_of(key, value, &known)?;
            }
            "role_timeout" => group.role_timeout = time(key, value)?,
            "device_timeout" => group.device_timeout = time(key, value)?,
            "service_timeout" => group.service_timeout = time(key, value)?,
            "unmount_timeout" => group.unmount_timeout = time(key, value)?,
            "check_timeout" => group.check_timeout = time(key, value)?,
            "nbd_dir" => group.nbd_dir = path(key, value)?,
            "device_dir" => group.device_dir = path(key, value)?,
            _ => return Err(format!("no setting '{key}'")),
        }
        Ok(())
    }
}

/// An absolute path without blanks and what means something to a shell.
fn path(key: &str, value: &str) -> Result<PathBuf, String> {
    if !value.starts_with('/') {
        return Err(format!("{key} must be an absolute path, not '{value}'"));
    }
    if !value.chars().all(is_plain) {
        return Err(format!("{key} has a character that is not allowed in a path: '{value}'"));
    }
    if key == "mount" && Path::new(value).components().count() < 2 {
        return Err("mount must not be the root directory".to_owned());
    }
    Ok(PathBuf::from(value))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._/:@+-".contains(c)
}

/// Words that are arguments of other programs, and no options.
fn names(key: &str, value: &str) -> Result<Vec<String>, String> {
    if !value.chars().all(|c| is_plain(c) || c == ' ' || c == '\t') {
        return Err(format!("{key} has a character that is not allowed: '{value}'"));
    }
    let words: Vec<String> =
        value.split([' ', '\t']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    match words.iter().find(|word| word.starts_with('-')) {
        Some(word) => {
            Err(format!("{key} has a word that looks like an option, which is not allowed: '{word}'"))
        }
        None => Ok(words),
    }
}

fn word(key: &str, value: &str) -> Result<String, String> {
    let words = names(key, value)?;
    match <[String; 1]>::try_from(words) {
        Ok([word]) => Ok(word),
        Err(_) => Err(format!("{key} must be one word, not '{value}'")),
    }
}

/// Seconds; 0 is as long as it takes.
fn time(key: &str, value: &str) -> Result<Duration, String> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse::<u32>() {
        Ok(0) if digits => Ok(Duration::from_secs(LONGEST.into())),
        Ok(seconds) if digits => Ok(Duration::from_secs(seconds.into())),
        _ => Err(format!("{key} must be a number of seconds, not '{value}'")),
    }
}

fn one_of<T: Copy>(key: &str, value: &str, known: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, found)) = known.iter().find(|(word, _)| *word == value) {
        return Ok(*found);
    }
    let mut words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    let last = words.pop().unwrap_or_default();
    Err(format!("{key} must be {} or {last}, not '{value}'", words.join(", ")))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
