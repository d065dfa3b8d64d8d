//! The grammar: which statements stand where and what values they take (spec conf.md).
//!
//! Values are checked where they stand, also those of other nodes' sections, so that errors come
//! in the order of the file; what is for another node is then dropped. What follows from the file
//! as a whole is `scope`'s.

use crate::config::{Config, KernelDevice};
use crate::error::{ConfError, Invalid, Problem, one_of, quoted};
use crate::lex::{Kind, Lexer, Position, Token};
use crate::node::Node;
use crate::scope::{Daemon, Global, NodeValues, Placed, Section, Settings};
use hast_net::Replication;
use hast_net::address::{Address, AddressError, MAX_TEXT};
use hast_net::payload::{Checksum, Compression};
use std::path::PathBuf;

/// Longest resource and provider name in bytes.
const MAX_NAME: usize = 254;
/// Longest path in bytes.
const MAX_PATH: usize = 1023;
/// Longest timeout in seconds: what an int holds.
const MAX_TIMEOUT: u32 = i32::MAX as u32;

const IN_FILE: [&str; 15] = [
    "control",
    "pidfile",
    "listen",
    "replication",
    "checksum",
    "compression",
    "timeout",
    "exec",
    "metaflush",
    "peer-timeout",
    "device",
    "direct-reads",
    "nbd",
    "on",
    "resource",
];
const IN_NODE: [&str; 4] = ["control", "listen", "pidfile", "nbd"];
const IN_RESOURCE: [&str; 12] = [
    "replication",
    "checksum",
    "compression",
    "timeout",
    "exec",
    "metaflush",
    "peer-timeout",
    "device",
    "direct-reads",
    "name",
    "local",
    "on",
];
const IN_RESOURCE_NODE: [&str; 5] = ["name", "local", "remote", "source", "metaflush"];

type Parsed<T> = Result<T, ConfError>;

pub(crate) struct Parser<'a> {
    text: &'a str,
    file: &'a str,
    node: &'a Node,
    lexer: Lexer<'a>,
    /// Lines of the `{` that are still open.
    opened: Vec<usize>,
    /// A statement of ours was not behind `#%`.
    is_ours_alone: bool,
}

impl<'a> Parser<'a> {
    pub(crate) fn new(text: &'a str, file: &'a str, node: &'a Node) -> Parser<'a> {
        Parser { text, file, node, lexer: Lexer::new(text), opened: Vec::new(), is_ours_alone: false }
    }

    /// Reads the whole text.
    pub(crate) fn config(mut self) -> Parsed<Config> {
        let mut global = Global::default();
        while let Some(keyword) = self.statement(&IN_FILE)? {
            match keyword.text {
                "on" => {
                    let mine = self.section()?.1;
                    while let Some(keyword) = self.statement(&IN_NODE)? {
                        let daemon = mine.then_some(&mut global.node);
                        self.daemon_statement(keyword, daemon)?;
                    }
                }
                "resource" => {
                    let section = self.resource(&global)?;
                    global.add(section);
                }
                "control" | "listen" | "pidfile" | "nbd" => {
                    self.daemon_statement(keyword, Some(&mut global.daemon))?;
                }
                _ => self.setting(keyword, &mut global.settings)?,
            }
        }
        let warnings = self.warnings();
        global.is_ours_alone = self.is_ours_alone;
        global
            .finish(self.node, warnings)
            .map_err(|missing| self.error(missing.at, missing.problem, missing.expected))
    }

    /// `resource` was read; reads its name and its section.
    fn resource(&mut self, global: &Global<'_>) -> Parsed<Section<'a>> {
        let name = self.word("a resource name")?;
        self.check_length(name, "resource name", MAX_NAME)?;
        if let Some(first) = global.line_of(name.text) {
            let problem = Problem::ResourceTwice { name: name.text.to_owned(), first };
            return Err(self.error(name.at, problem, "another resource name".to_owned()));
        }
        self.open()?;
        let mut section = Section::new(name);
        while let Some(keyword) = self.statement(&IN_RESOURCE)? {
            match keyword.text {
                "on" => {
                    let (name, mine) = self.section()?;
                    section.enter(name.text, mine);
                    while let Some(keyword) = self.statement(&IN_RESOURCE_NODE)? {
                        let values = mine.then_some(&mut section.node);
                        self.node_statement(keyword, values)?;
                    }
                }
                "name" => section.provname = Some(self.provider_name()?),
                "local" => section.local = Some(self.path()?),
                _ => self.setting(keyword, &mut section.settings)?,
            }
        }
        Ok(section)
    }

    /// Reads the value of a statement of a resource's node section; `None` stands for another node.
    fn node_statement(&mut self, keyword: Token<'a>, values: Option<&mut NodeValues>) -> Parsed<()> {
        let mine = values.is_some();
        let mut other = NodeValues::default();
        let values = values.unwrap_or(&mut other);
        match keyword.text {
            "name" => values.provname = Some(self.provider_name()?),
            "local" => values.local = Some(self.path()?),
            "remote" => values.remote = self.remote(mine)?,
            "source" => {
                let token = self.word("an address to connect from")?;
                values.source = self.address(token, Address::parse_source, mine)?;
            }
            _ => values.metaflush = Some(self.switch()?),
        }
        Ok(())
    }

    /// Reads the value of a statement about `hastd` itself; `None` stands for another node.
    fn daemon_statement(&mut self, keyword: Token<'a>, daemon: Option<&mut Daemon>) -> Parsed<()> {
        let mine = daemon.is_some();
        let mut other = Daemon::default();
        let daemon = daemon.unwrap_or(&mut other);
        match keyword.text {
            "control" => {
                let token = self.word("an address of the control socket")?;
                daemon.control = self.address(token, Address::parse, mine)?;
            }
            "listen" => {
                let token = self.word("an address to listen on")?;
                daemon.listen.extend(self.address(token, Address::parse, mine)?);
            }
            "pidfile" => daemon.pidfile = Some(self.path()?),
            _ => daemon.nbd = Some(self.nbd_directory(keyword)?),
        }
        Ok(())
    }

    /// Reads the value of a statement that the file and a resource share.
    fn setting(&mut self, keyword: Token<'a>, settings: &mut Settings) -> Parsed<()> {
        match keyword.text {
            "replication" => {
                let modes = [Replication::Fullsync, Replication::Memsync, Replication::Async];
                settings.replication = Some(self.choice(&modes.map(|mode| (mode.as_str(), mode)))?);
            }
            "checksum" => {
                let kinds = [Checksum::None, Checksum::Crc32, Checksum::Sha256];
                settings.checksum = Some(self.choice(&kinds.map(|kind| (kind.as_str(), kind)))?);
            }
            "compression" => {
                let kinds = [Compression::None, Compression::Hole, Compression::Lzf];
                settings.compression = Some(self.choice(&kinds.map(|kind| (kind.as_str(), kind)))?);
            }
            "timeout" => settings.timeout = Some(self.timeout()?),
            "peer-timeout" => {
                settings.peer_timeout = Some(self.timeout()?);
                self.end_extension(keyword)?;
            }
            "device" => settings.device = Some(self.device(keyword)?),
            "direct-reads" => {
                settings.direct_reads = Some(self.switch()?);
                self.end_extension(keyword)?;
            }
            "exec" => settings.exec = Some(self.path()?),
            _ => settings.metaflush = Some(self.switch()?),
        }
        Ok(())
    }

    /// The keyword of the next statement, one of `known`; `None` at the end of the section, or of
    /// the file if none is open.
    fn statement(&mut self, known: &[&str]) -> Parsed<Option<Token<'a>>> {
        let token = self.lexer.next_token();
        let problem = match token.kind {
            Kind::Close if self.opened.pop().is_some() => return Ok(None),
            Kind::End if self.opened.is_empty() => return Ok(None),
            Kind::Word | Kind::Reserved | Kind::Extension if known.contains(&token.text) => {
                // Every statement of the original begins with a reserved word.
                self.is_ours_alone |= token.kind == Kind::Word;
                return Ok(Some(token));
            }
            Kind::Word => Problem::UnknownWord(quoted(token.text)),
            // Nothing is waiting for a name here, so that its being reserved is no explanation.
            Kind::Reserved | Kind::Number => Problem::OutOfPlace(quoted(token.text)),
            _ => self.problem(token),
        };
        let mut expected = known.to_vec();
        if !self.opened.is_empty() {
            expected.push("}");
        }
        Err(self.error(token.at, problem, one_of(&expected)))
    }

    /// `on` was read; reads the node's name and the `{`, and tells whether it is this node.
    fn section(&mut self) -> Parsed<(Token<'a>, bool)> {
        let name = self.word("a node name")?;
        let mine = self.node.matches(name.text);
        self.open()?;
        Ok((name, mine))
    }

    fn open(&mut self) -> Parsed<()> {
        let token = self.lexer.next_token();
        if token.kind != Kind::Open {
            let problem = match token.kind {
                Kind::Word | Kind::Number | Kind::Reserved => Problem::OutOfPlace(quoted(token.text)),
                _ => self.problem(token),
            };
            return Err(self.error(token.at, problem, one_of(&["{"])));
        }
        self.opened.push(token.at.line);
        Ok(())
    }

    /// A word that is neither reserved nor a number.
    fn word(&mut self, what: &str) -> Parsed<Token<'a>> {
        let token = self.lexer.next_token();
        if token.kind == Kind::Word {
            return Ok(token);
        }
        Err(self.error(token.at, self.problem(token), what.to_owned()))
    }

    fn choice<T: Copy>(&mut self, values: &[(&str, T)]) -> Parsed<T> {
        let token = self.lexer.next_token();
        if token.kind == Kind::Reserved
            && let Some((_, value)) = values.iter().find(|(word, _)| *word == token.text)
        {
            return Ok(*value);
        }
        let words: Vec<&str> = values.iter().map(|(word, _)| *word).collect();
        Err(self.error(token.at, self.wrong_value(token), one_of(&words)))
    }

    fn switch(&mut self) -> Parsed<bool> {
        self.choice(&[("on", true), ("off", false)])
    }

    fn timeout(&mut self) -> Parsed<u32> {
        let token = self.lexer.next_token();
        let problem = match (token.kind, token.text.parse()) {
            (Kind::Number, Ok(seconds @ 1..=MAX_TIMEOUT)) => return Ok(seconds),
            (Kind::Number, _) => Problem::Timeout(quoted(token.text)),
            _ => self.wrong_value(token),
        };
        Err(self.error(token.at, problem, format!("a number of seconds from 1 to {MAX_TIMEOUT}")))
    }

    fn path(&mut self) -> Parsed<PathBuf> {
        let token = self.word("a path")?;
        self.check_length(token, "path", MAX_PATH)?;
        Ok(PathBuf::from(token.text))
    }

    fn provider_name(&mut self) -> Parsed<Placed<String>> {
        let token = self.word("a provider name")?;
        self.check_length(token, "provider name", MAX_NAME)?;
        Ok(Placed { value: token.text.to_owned(), at: token.at })
    }

    fn nbd_directory(&mut self, keyword: Token<'a>) -> Parsed<PathBuf> {
        const WHAT: &str = "a directory for NBD sockets";
        let token = self.word(WHAT)?;
        self.check_length(token, "path", MAX_PATH)?;
        if !token.text.starts_with('/') {
            let problem = Problem::RelativeDirectory(quoted(token.text));
            return Err(self.error(token.at, problem, WHAT.to_owned()));
        }
        self.end_extension(keyword)?;
        Ok(PathBuf::from(token.text))
    }

    /// None of its words is reserved but `none`.
    fn device(&mut self, keyword: Token<'a>) -> Parsed<KernelDevice> {
        let token = self.lexer.next_token();
        let named = matches!(token.kind, Kind::Word | Kind::Reserved);
        let Some(device) = KernelDevice::parse(token.text).filter(|_| named) else {
            let words = KernelDevice::ALL.map(KernelDevice::as_str);
            return Err(self.error(token.at, self.wrong_value(token), one_of(&words)));
        };
        self.end_extension(keyword)?;
        Ok(device)
    }

    /// An extension line holds its whole statement and nothing else: the reference sees none of it.
    fn end_extension(&mut self, keyword: Token<'a>) -> Parsed<()> {
        if keyword.kind != Kind::Extension {
            return Ok(());
        }
        let end = self.lexer.next_token();
        if end.kind == Kind::LineEnd {
            return Ok(());
        }
        let problem = Problem::OutOfPlace(quoted(end.text));
        Err(self.error(end.at, problem, "the end of the extension line".to_owned()))
    }

    /// Outer `None`: an address that only the other node can use.
    fn remote(&mut self, mine: bool) -> Parsed<Option<Option<Address>>> {
        let token = self.lexer.next_token();
        match token.kind {
            Kind::Reserved if token.text == "none" => Ok(Some(None)),
            Kind::Word => Ok(self.address(token, Address::parse, mine)?.map(Some)),
            _ => Err(self.error(token.at, self.problem(token), "an address or `none`".to_owned())),
        }
    }

    /// `None` if the address is for a node of another system, whose socket paths may be longer.
    fn address(
        &self,
        token: Token<'a>,
        parse: impl Fn(&str) -> Result<Address, AddressError>,
        mine: bool,
    ) -> Parsed<Option<Address>> {
        self.check_length(token, "address", MAX_TEXT)?;
        match parse(token.text) {
            Ok(address) => Ok(Some(address)),
            Err(AddressError::SocketPathTooLong { .. }) if !mine => Ok(None),
            Err(error) => {
                let expected = "[protocol://]host[:port] or a socket path".to_owned();
                Err(self.error(token.at, Problem::Address(error), expected))
            }
        }
    }

    fn check_length(&self, token: Token<'a>, what: &'static str, limit: usize) -> Parsed<()> {
        let length = token.text.len();
        if length > limit {
            let problem = Problem::TooLong { what, length, limit };
            return Err(self.error(token.at, problem, format!("a shorter {what}")));
        }
        Ok(())
    }

    fn wrong_value(&self, token: Token<'a>) -> Problem {
        match token.kind {
            Kind::Word | Kind::Number | Kind::Reserved => Problem::WrongValue(quoted(token.text)),
            _ => self.problem(token),
        }
    }

    /// Why a token is no name, path or address.
    fn problem(&self, token: Token<'a>) -> Problem {
        match token.kind {
            Kind::Word | Kind::Open | Kind::Close => Problem::OutOfPlace(quoted(token.text)),
            Kind::Number => Problem::Number(quoted(token.text)),
            Kind::Reserved => Problem::Reserved(quoted(token.text)),
            Kind::Extension => Problem::ExtensionOutOfPlace(quoted(token.text)),
            Kind::LineEnd => Problem::EndOfLine,
            Kind::End => match self.opened.last() {
                Some(opened) => Problem::Unclosed { opened: *opened },
                None => Problem::EndOfFile,
            },
        }
    }

    fn error(&self, at: Position, problem: Problem, expected: String) -> ConfError {
        ConfError::Invalid(Box::new(Invalid::new(self.file, self.text, at, problem, expected)))
    }

    fn warnings(&self) -> Vec<String> {
        let (skipped, more) = self.lexer.skipped();
        let mut warnings: Vec<String> = skipped
            .iter()
            .map(|run| {
                let (line, column) = (run.at.line, run.at.column);
                format!("{}:{line}:{column}: skipped `{}`, no word has this", self.file, quoted(run.text))
            })
            .collect();
        if more > 0 {
            warnings.push(format!("{}: {more} more places were skipped", self.file));
        }
        warnings
    }
}
