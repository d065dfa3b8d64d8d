//! From text to tokens with positions (spec conf.md, grammar and "Corners").
//!
//! Owns comments, the `#%` extension lines and what is skipped. Knows reserved words as such but
//! not where they may stand: that is the parser's.

/// Words that cannot be names, paths or addresses. Lower case only; those of extensions are not among them.
const RESERVED: [&str; 24] = [
    "async",
    "checksum",
    "compression",
    "control",
    "crc32",
    "exec",
    "fullsync",
    "hole",
    "listen",
    "local",
    "lzf",
    "memsync",
    "metaflush",
    "name",
    "none",
    "off",
    "on",
    "pidfile",
    "remote",
    "replication",
    "resource",
    "sha256",
    "source",
    "timeout",
];

/// Statements that a line may hide from the reference behind `#%`.
const EXTENSIONS: [&str; 4] = ["nbd", "peer-timeout", "device", "direct-reads"];

/// Skipped runs of characters that are reported one by one; further ones are only counted.
const MAX_SKIPPED: usize = 50;

/// Where a token stands: enough to show its line again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    /// From 1.
    pub(crate) line: usize,
    /// From 1, in characters.
    pub(crate) column: usize,
    /// Characters that a caret should underline.
    pub(crate) width: usize,
    /// Byte at which the line begins.
    pub(crate) line_start: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A word that is free for names, paths and addresses.
    Word,
    /// A word made of digits alone.
    Number,
    /// One of [`RESERVED`].
    Reserved,
    /// `{`
    Open,
    /// `}`
    Close,
    /// The keyword behind a `#%`.
    Extension,
    /// The end of a line that began with `#%`; other line ends are blanks.
    LineEnd,
    /// The end of the file; stands right behind the last token.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    pub(crate) at: Position,
}

/// A run of characters outside the word set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Skipped<'a> {
    pub(crate) text: &'a str,
    pub(crate) at: Position,
}

/// Hands out one token at a time, so that its size is independent of the text's.
pub(crate) struct Lexer<'a> {
    text: &'a str,
    rest: &'a str,
    line: usize,
    column: usize,
    line_start: usize,
    /// Only blanks so far on this line.
    at_line_start: bool,
    in_extension: bool,
    /// Behind the last token.
    behind: Position,
    skipped: Vec<Skipped<'a>>,
    skipped_more: usize,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a str) -> Lexer<'a> {
        Lexer {
            text,
            rest: text,
            line: 1,
            column: 1,
            line_start: 0,
            at_line_start: true,
            in_extension: false,
            behind: Position { line: 1, column: 1, width: 1, line_start: 0 },
            skipped: Vec::new(),
            skipped_more: 0,
        }
    }

    pub(crate) fn next_token(&mut self) -> Token<'a> {
        loop {
            match self.rest.chars().next() {
                None | Some('\n') if self.in_extension => {
                    self.in_extension = false;
                    return Token { kind: Kind::LineEnd, text: "", at: self.behind };
                }
                None => return Token { kind: Kind::End, text: "", at: self.behind },
                Some('\n') => self.take_newline(),
                Some(' ' | '\t' | '\r') => {
                    self.take_while(is_blank);
                }
                Some('#') => {
                    let comment = self.rest.split('\n').next().unwrap_or_default();
                    if self.at_line_start
                        && let Some(before) = extension_keyword(comment)
                    {
                        self.take(before);
                        self.in_extension = true;
                        return self.take_token(Kind::Extension, is_word);
                    }
                    self.take(comment.len());
                }
                Some('{') => return self.take_token(Kind::Open, once('{')),
                Some('}') => return self.take_token(Kind::Close, once('}')),
                Some(c) if is_word(c) => return self.take_word(),
                Some(_) => self.skip(),
            }
        }
    }

    /// What was skipped so far, and how many runs more than are listed.
    pub(crate) fn skipped(&self) -> (&[Skipped<'a>], usize) {
        (&self.skipped, self.skipped_more)
    }

    fn take_word(&mut self) -> Token<'a> {
        // A zone's `%` belongs to an IPv6 address, and to no other word.
        let mut colons = 0_u8;
        let mut token = self.take_token(Kind::Word, |c| {
            colons = colons.saturating_add(u8::from(c == ':'));
            is_word(c) || (c == '%' && colons > 1)
        });
        if token.text.bytes().all(|b| b.is_ascii_digit()) {
            token.kind = Kind::Number;
        } else if RESERVED.binary_search(&token.text).is_ok() {
            token.kind = Kind::Reserved;
        }
        token
    }

    fn take_token(&mut self, kind: Kind, belongs: impl FnMut(char) -> bool) -> Token<'a> {
        let (text, at) = self.take_while(belongs);
        self.at_line_start = false;
        self.behind = Position { column: self.column, width: 1, ..at };
        Token { kind, text, at }
    }

    fn skip(&mut self) {
        let strange = |c| !is_word(c) && !is_blank(c) && !matches!(c, '\n' | '#' | '{' | '}');
        let (text, at) = self.take_while(strange);
        self.at_line_start = false;
        if self.skipped.len() < MAX_SKIPPED {
            self.skipped.push(Skipped { text, at });
        } else {
            self.skipped_more = self.skipped_more.saturating_add(1);
        }
    }

    fn take_while(&mut self, mut belongs: impl FnMut(char) -> bool) -> (&'a str, Position) {
        let length = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (line, column, line_start) = (self.line, self.column, self.line_start);
        let text = self.take(length);
        (text, Position { line, column, width: self.column.saturating_sub(column), line_start })
    }

    /// Moves on by `length` bytes, which contain no newline.
    fn take(&mut self, length: usize) -> &'a str {
        let (text, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, ""));
        self.rest = rest;
        self.column = self.column.saturating_add(text.chars().count());
        text
    }

    fn take_newline(&mut self) {
        self.rest = self.rest.strip_prefix('\n').unwrap_or(self.rest);
        self.line = self.line.saturating_add(1);
        self.column = 1;
        self.line_start = self.text.len().saturating_sub(self.rest.len());
        self.at_line_start = true;
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':' | '[' | ']')
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r')
}

/// True for the first `wanted` only.
fn once(wanted: char) -> impl FnMut(char) -> bool {
    let mut first = true;
    move |c| std::mem::take(&mut first) && c == wanted
}

/// The bytes before the keyword if this comment is an extension line.
fn extension_keyword(comment: &str) -> Option<usize> {
    let behind = comment.strip_prefix("#%")?;
    let statement = behind.trim_start_matches(is_blank);
    let keyword = statement.split(|c| !is_word(c)).next()?;
    let known = EXTENSIONS.contains(&keyword);
    // Without a blank in between, `#%nbd` is a comment.
    (known && statement.len() < behind.len()).then(|| comment.len().saturating_sub(statement.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &str) -> Vec<(Kind, &str)> {
        let mut lexer = Lexer::new(text);
        let mut all = Vec::new();
        loop {
            let token = lexer.next_token();
            if token.kind == Kind::End {
                return all;
            }
            all.push((token.kind, token.text));
        }
    }

    #[test]
    fn the_list_is_sorted_for_the_search() {
        assert!(RESERVED.is_sorted());
    }

    #[test]
    fn a_word_has_these_characters_and_digits_alone_are_a_number() {
        let word = "AZaz09.-_/:[]";
        assert_eq!(tokens(word), [(Kind::Word, word)]);
        assert_eq!(tokens("0123456789"), [(Kind::Number, "0123456789")]);
        assert_eq!(tokens("1a -1 1.0"), [(Kind::Word, "1a"), (Kind::Word, "-1"), (Kind::Word, "1.0")]);
    }

    #[test]
    fn reserved_words_are_whole_and_lower_case() {
        for word in
            "control pidfile listen replication checksum compression timeout exec metaflush resource name \
                     local remote source on off fullsync memsync async none crc32 sha256 hole lzf"
                .split(' ')
        {
            assert_eq!(tokens(word), [(Kind::Reserved, word)]);
            assert_eq!(tokens(&word.to_uppercase()), [(Kind::Word, &*word.to_uppercase())]);
            let longer = format!("{word}x");
            assert_eq!(tokens(&longer), [(Kind::Word, &*longer)]);
        }
        assert_eq!(tokens("nbd all"), [(Kind::Word, "nbd"), (Kind::Word, "all")]);
    }

    #[test]
    fn braces_need_no_blanks_and_cr_is_a_blank() {
        let expected = [(Kind::Word, "a"), (Kind::Open, "{"), (Kind::Close, "}"), (Kind::Close, "}")];
        assert_eq!(tokens("a{}}"), expected);
        assert_eq!(tokens("a\r\n\t{ }\r}\r\n"), expected);
        assert_eq!(Lexer::new("\r").skipped().0, []);
    }

    #[test]
    fn comments_end_with_the_line_or_the_file() {
        assert_eq!(tokens("a # b { ; }\nc#d\n#"), [(Kind::Word, "a"), (Kind::Word, "c")]);
        assert_eq!(tokens("# only"), []);
    }

    #[test]
    fn positions_count_characters() {
        let mut lexer = Lexer::new("é listen\n\t  /a");
        let at = |line, column, width, line_start| Position { line, column, width, line_start };
        assert_eq!(lexer.next_token().at, at(1, 3, 6, 0));
        assert_eq!(lexer.next_token().at, at(2, 4, 2, 10));
        assert_eq!(lexer.next_token().at, at(2, 6, 1, 10));
        assert_eq!(lexer.skipped().0, [Skipped { text: "é", at: at(1, 1, 1, 0) }]);
    }

    #[test]
    fn skipped_characters_separate_words() {
        assert_eq!(tokens("a\";b"), [(Kind::Word, "a"), (Kind::Word, "b")]);
        let mut lexer = Lexer::new("a\";b");
        while lexer.next_token().kind != Kind::End {}
        let at = Position { line: 1, column: 2, width: 2, line_start: 0 };
        assert_eq!(lexer.skipped().0, [Skipped { text: "\";", at }]);
    }

    #[test]
    fn what_is_remembered_of_skipped_characters_is_bounded() {
        let text = "; ".repeat(1000);
        let mut lexer = Lexer::new(&text);
        lexer.next_token();
        assert_eq!(lexer.skipped().0.len(), MAX_SKIPPED);
        assert_eq!(lexer.skipped().1, 1000 - MAX_SKIPPED);
    }

    #[test]
    fn extension_lines() {
        let extension = [(Kind::Extension, "nbd"), (Kind::Word, "/run"), (Kind::LineEnd, "")];
        for text in ["#% nbd /run", " \t#%\t nbd /run # note\n", "#% nbd /run\r\n"] {
            assert_eq!(tokens(text), extension, "{text:?}");
        }
        assert_eq!(tokens("#% nbd"), [(Kind::Extension, "nbd"), (Kind::LineEnd, "")]);
        assert_eq!(tokens("#% nbd{"), [(Kind::Extension, "nbd"), (Kind::Open, "{"), (Kind::LineEnd, "")]);
        for comment in [
            "#%nbd /run",
            "# % nbd /run",
            "##% nbd /run",
            "#% nbdx /run",
            "#% NBD /run",
            "#% listen /run",
            "#%",
            "#% ",
            "#% ;nbd",
        ] {
            assert_eq!(tokens(comment), [], "{comment:?}");
        }
        assert_eq!(tokens("on #% nbd /run"), [(Kind::Reserved, "on")]);
        assert_eq!(tokens("; #% nbd /run"), []);
    }

    proptest! {
        #[test]
        fn every_position_leads_back_to_its_token(text in "[a-z0-9{}#%; \t\r\né\u{0}]{0,80}") {
            let mut lexer = Lexer::new(&text);
            loop {
                let token = lexer.next_token();
                if matches!(token.kind, Kind::End) { break; }
                let line = text[token.at.line_start..].split('\n').next().unwrap();
                let shown: String = line.chars().skip(token.at.column - 1).take(token.text.chars().count()).collect();
                prop_assert_eq!(shown, token.text);
                prop_assert_eq!(text[..token.at.line_start].matches('\n').count() + 1, token.at.line);
            }
        }
    }
}
