/// A row of the table of what becomes of two nodes' changes, as programs meet it: what is there, what
/// is done on the two sides of a cut network, what all nodes have in the end.
///
/// Bash runs the scripts in a directory of the row's own; `save TEXT FILE` is a save as editors do it,
/// a new file renamed over the old one within one commit. What is there is written as `MergeRow.show` prints
/// it: `f=old` a file, `d/` a directory, `l->f` a symbolic link; then what is not as usual of mode,
/// owner, number of names (`x2`) and extended attributes. A conflict name says `earlier` or `later`
/// for the node that wrote what bears it, and no date.
struct MergeRow: Sendable, CustomStringConvertible {
    let name: String
    let setup: String
    /// What is done on one side of the cut, and when that is committed, what is done on the other.
    let earlier: String
    let later: String
    let end: [String]
    /// The same comes out when they change places.
    let isTimeless: Bool

    var description: String { name }

    init(
        _ name: String, _ setup: String, _ earlier: String, _ later: String, _ end: String...
    ) {
        self.init(name, setup, earlier, later, end, isTimeless: false)
    }

    private init(
        _ name: String, _ setup: String, _ earlier: String, _ later: String, _ end: [String],
        isTimeless: Bool
    ) {
        self.name = name
        self.setup = setup
        self.earlier = earlier
        self.later = later
        self.end = end.sorted()
        self.isTimeless = isTimeless
    }

    static func anyOrder(
        _ name: String, _ setup: String, _ one: String, _ other: String, _ end: String...
    ) -> MergeRow {
        MergeRow(name, setup, one, other, end, isTimeless: true)
    }

    /// With its sides exchanged in time.
    var swapped: MergeRow {
        let end = end.map { line in
            line.replacing("(conflict earlier)", with: "(conflict *)")
                .replacing("(conflict later)", with: "(conflict earlier)")
                .replacing("(conflict *)", with: "(conflict later)")
        }
        return MergeRow("\(name), swapped", setup, later, earlier, end, isTimeless: true)
    }

    /// Prints what is below the working directory, as the rows have it.
    static let show = #"""
        use File::Find;
        my (%attributes, $file);
        open my $list, "-|", "getfattr -RPdm '^user\\.' ." or die "getfattr: $!";
        while (<$list>) {
            $file = "./$1" if /^# file: (.*)/;
            $attributes{$file} .= " user.$1=$2" if /^user\.(.*)="(.*)"/;
        }
        sub content {
            open my $in, "<", $_[0] or return "? $!";
            my $bytes = do { local $/; <$in> } // "";
            my ($first, $length) = (substr($bytes, 0, 1), length $bytes);
            return "$first*$length" if $length > 99 && $bytes eq $first x $length;
            chomp $bytes;
            return $bytes;
        }
        find({ no_chdir => 1, wanted => sub {
            my ($path, @s) = ($_, lstat);
            die "$path: $!" unless @s;
            my ($mode, $kind) = ($s[2] & 07777, $s[2] >> 12);
            my $line = $path;
            $line .= "/" if $kind == 4;
            $line .= "=" . content($path) if $kind == 8;
            $line .= "->" . readlink $path if $kind == 10;
            $line .= "|" if $kind == 1;
            $line .= sprintf ":%s%d,%d", $kind == 2 ? "c" : "b", $s[6] >> 8, $s[6] & 255
                if $kind == 2 || $kind == 6;
            $line .= sprintf " %o", $mode
                if $kind != 10 && $mode != ($kind == 4 ? 0755 : 0644);
            $line .= " $s[4]:$s[5]" if $s[4] || $s[5];
            $line .= " x$s[3]" if $kind != 4 && $s[3] != 1;
            $line .= $attributes{$path} // "";
            $line =~ s/([^ -~])/sprintf "\\x%02x", ord $1/ge;
            print substr($line, 2), "\n" if $path ne ".";
        } }, ".");
        """#

    static let all =
        content + removals + renames + creations + directories + links + attributes
        + editors + names

    // More than fits into a record, so that it travels by itself.
    private static let big = "head -c 20000 /dev/zero | tr '\\0'"

    private static let content = [
        MergeRow(
            "edit, edit", "echo old >f.txt", "echo one >f.txt", "echo two >f.txt",
            "f.txt=two", "f (conflict earlier).txt=one"),
        MergeRow(
            "large edit, large edit", "\(big) o >f", "\(big) x >f", "\(big) y >f",
            "f=y*20000", "f (conflict earlier)=x*20000"),
        MergeRow(
            "edit, truncation", "echo old >f", "echo one >f", ": >f",
            "f=", "f (conflict earlier)=one"),
        MergeRow(
            "edit of the same bytes", "echo old >f", "echo new >f", "echo new >f", "f=new"),
        MergeRow(
            "edit, edit of several", "echo old | tee f g >k", "echo one | tee f g >k",
            "echo two >f; echo two >g",
            "f=two", "g=two", "k=one", "f (conflict earlier)=one", "g (conflict earlier)=one"),
    ]

    private static let removals = [
        MergeRow.anyOrder("edit, delete", "echo old >f", "echo new >f", "rm f", "f=new"),
        .anyOrder("truncate, delete", "echo old >f", ": >f", "rm f", "f="),
        .anyOrder("rename, delete", "echo old >f", "mv f g", "rm f", "g=old"),
        .anyOrder("link, delete", "echo old >f", "ln f g", "rm f", "f=old x2", "g=old x2"),
        .anyOrder("chmod, delete", "echo old >f", "chmod 600 f", "rm f"),
        .anyOrder("chown, delete", "echo old >f", "chown 7:8 f", "rm f"),
        .anyOrder("xattr, delete", "echo old >f", "setfattr -n user.a -v 1 f", "rm f"),
        .anyOrder("delete, delete", "echo old >f", "rm f", "rm f"),
        .anyOrder(
            "move elsewhere, delete", "mkdir d; echo old >f", "mv f d", "rm f", "d/", "d/f=old"),
    ]

    private static let renames = [
        MergeRow.anyOrder("rename, edit", "echo old >f", "mv f g", "echo new >f", "g=new"),
        MergeRow("rename to P, to Q", "echo old >f", "mv f p", "mv f q", "q=old"),
        .anyOrder("rename to P twice", "echo old >f", "mv f p", "mv f p", "p=old"),
        MergeRow(
            "move to P/, to Q/", "mkdir p q; echo old >f", "mv f p", "mv f q", "p/", "q/", "q/f=old"
        ),
        MergeRow(
            "two files to one name", "echo one >a; echo two >b", "mv a x", "mv b x",
            "x=two", "x (conflict earlier)=one"),
        MergeRow(
            "edit, replace by rename", "echo old >f; echo other >g", "echo new >f", "mv g f",
            "f=other", "f (conflict earlier)=new"),
        MergeRow(
            "replace by rename, edit", "echo old >f; echo other >g", "mv g f", "echo new >f",
            "f=new", "f (conflict earlier)=other"),
        .anyOrder(
            "swap, edit", "echo a >a; echo b >b", "mv a t; mv b a; mv t b", "echo new >a",
            "a=b", "b=new"),
    ]

    private static let creations = [
        MergeRow.anyOrder("create, create the same", ":", "echo new >f", "echo new >f", "f=new"),
        MergeRow(
            "create, create", ":", "echo one >f.txt", "echo two >f.txt",
            "f.txt=two", "f (conflict earlier).txt=one"),
        MergeRow(
            "large create, large create", ":", "\(big) x >f", "\(big) y >f",
            "f=y*20000", "f (conflict earlier)=x*20000"),
        .anyOrder(
            "mkdir, mkdir", ":", "mkdir -p d/e; echo 1 >d/one; echo 1 >d/e/one",
            "mkdir -p d/e; echo 2 >d/two; echo 2 >d/e/two",
            "d/", "d/one=1", "d/two=2", "d/e/", "d/e/one=1", "d/e/two=2"),
        MergeRow(
            "mkdir with the same file inside", ":", "mkdir d; echo 1 >d/f", "mkdir d; echo 2 >d/f",
            "d/", "d/f=2", "d/f (conflict earlier)=1"),
        MergeRow(
            "file, mkdir", ":", "echo new >f", "mkdir f; echo in >f/in",
            "f/", "f/in=in", "f (conflict earlier)=new"),
        MergeRow(
            "mkdir, file", ":", "mkdir f; echo in >f/in", "echo new >f",
            "f/", "f/in=in", "f (conflict later)=new"),
        MergeRow(
            "symlink, file", ":", "ln -s a f", "echo new >f", "f=new", "f (conflict earlier)->a"),
        .anyOrder("symlink, symlink the same", ":", "ln -s a f", "ln -s a f", "f->a"),
        MergeRow(
            "symlink, symlink", ":", "ln -s a f", "ln -s b f", "f->b", "f (conflict earlier)->a"),
        MergeRow(
            "symlink set anew, twice", "ln -s a f", "ln -sfn b f", "ln -sfn c f",
            "f->c", "f (conflict earlier)->b"),
        .anyOrder("fifo, fifo", ":", "mkfifo f", "mkfifo f", "f|"),
        MergeRow(
            "fifo, file", ":", "mkfifo f", "echo new >f", "f=new", "f (conflict earlier)|"),
        MergeRow(
            "device, device", ":", "mknod f c 1 3", "mknod f c 1 5",
            "f:c1,5", "f (conflict earlier):c1,3"),
        .anyOrder(
            "chmod of a device, rename", "mknod f b 7 9", "chmod 600 f", "mv f g", "g:b7,9 600"),
    ]

    private static let directories = [
        MergeRow.anyOrder(
            "rename directory, add inside", "mkdir d; echo old >d/f", "mv d e",
            "echo new >d/g; mkdir d/s; echo new >d/s/h",
            "e/", "e/f=old", "e/g=new", "e/s/", "e/s/h=new"),
        .anyOrder(
            "rename directory, rename inside", "mkdir d; echo old >d/f", "mv d e", "mv d/f d/g",
            "e/", "e/g=old"),
        .anyOrder(
            "delete directory, add inside", "mkdir -p d/s; echo old | tee d/f >d/s/g", "rm -r d",
            "echo new >d/s/new", "d/", "d/s/", "d/s/new=new"),
        .anyOrder(
            "delete directory, edit inside", "mkdir -p d/s; echo old | tee d/f d/h >d/s/g",
            "rm -r d",
            "echo new >d/f", "d/", "d/f=new"),
        .anyOrder(
            "delete directory, move into it", "mkdir d; echo old >f", "rmdir d", "mv f d",
            "d/", "d/f=old"),
        .anyOrder(
            "delete directory, move out of it", "mkdir d; echo old | tee d/f >d/g", "rm -r d",
            "mv d/f f", "f=old"),
        .anyOrder(
            "delete directory, rename it", "mkdir d; echo old >d/f", "rm -r d", "mv d e"),
        .anyOrder(
            "delete tree, chmod tree", "mkdir -p d/s; echo old | tee d/f >d/s/g", "rm -r d",
            "chmod -R go-rwx d"),
        MergeRow(
            "rename directory to P, to Q", "mkdir d; echo old >d/f", "mv d p", "mv d q",
            "q/", "q/f=old"),
        .anyOrder(
            "two directories to one name", "mkdir a b; echo 1 >a/f; echo 2 >b/g", "mv a x",
            "mv b x", "x/", "x/f=1", "x/g=2"),
        MergeRow(
            "A into B, B into A", "mkdir a b; echo a >a/f; echo b >b/f", "mv a b", "mv b a",
            "b/", "b/f=b", "b/a/", "b/a/f=a"),
        MergeRow(
            "A into B/X, B into A/Y", "mkdir -p a/y b/x; echo a >a/f; echo b >b/f", "mv a b/x",
            "mv b a/y", "b/", "b/f=b", "b/x/", "b/x/a/", "b/x/a/f=a", "b/x/a/y/"),
        MergeRow(
            "a circle of three", "mkdir a b c; for d in a b c; do echo $d >$d/f; done",
            "mv a b; mv b c", "mv c a", "c/", "c/f=c", "c/b/", "c/b/f=b", "c/b/a/", "c/b/a/f=a"),
        .anyOrder(
            "replace file by directory, edit", "echo old >f", "rm f; mkdir f; echo in >f/in",
            "echo new >f", "f/", "f/in=in", "f (conflict later)=new"),
        .anyOrder(
            "replace directory by file, add inside", "mkdir d; echo old >d/f",
            "rm -r d; echo new >d", "echo in >d/in", "d/", "d/in=in", "d (conflict earlier)=new"),
    ]

    private static let links = [
        // The name that was put there last stays.
        MergeRow.anyOrder(
            "each deletes another name", "echo old >f; ln f g", "rm f", "rm g", "g=old"),
        .anyOrder(
            "link and delete, link", "echo old >f", "ln f g", "ln f h; rm f", "g=old x2", "h=old x2"
        ),
        .anyOrder(
            "delete a name, edit by the other", "echo old >f; ln f g", "rm f", "echo new >g",
            "g=new"),
        .anyOrder(
            "edit by one name, rename the other", "echo old >f; ln f g", "echo new >f", "mv g h",
            "f=new x2", "h=new x2"),
        .anyOrder(
            "rename one, rename the other", "echo old >f; ln f g", "mv f p", "mv g q",
            "p=old x2", "q=old x2"),
    ]

    private static let attributes = [
        MergeRow.anyOrder("edit, chmod", "echo old >f", "echo new >f", "chmod 600 f", "f=new 600"),
        .anyOrder(
            "edit, chown and xattr", "echo old >f", "echo new >f",
            "chown 7:8 f; setfattr -n user.a -v 1 f", "f=new 7:8 user.a=1"),
        .anyOrder("chmod, chown", "echo old >f", "chmod 600 f", "chown 7:8 f", "f=old 600 7:8"),
        MergeRow("chmod, chmod", "echo old >f", "chmod 600 f", "chmod 640 f", "f=old 640"),
        MergeRow("chown, chown", "mkdir d", "chown 7:8 d", "chown 9:10 d", "d/ 9:10"),
        .anyOrder("rename, chmod", "echo old >f", "mv f g", "chmod 600 f", "g=old 600"),
        .anyOrder(
            "chmod of a directory, add inside", "mkdir d", "chmod 700 d", "echo new >d/f",
            "d/ 700", "d/f=new"),
        MergeRow(
            "xattrs one by one",
            "echo old >f; for n in a b c d; do setfattr -n user.$n -v 0 f; done",
            "setfattr -n user.a -v 1 f; setfattr -n user.b -v 1 f; setfattr -x user.d f",
            "setfattr -n user.b -v 2 f; setfattr -x user.c f; setfattr -n user.e -v 2 f",
            "f=old user.a=1 user.b=2 user.e=2"),
        .anyOrder(
            "xattr removed, set anew", "echo old >f; setfattr -n user.a -v 0 f",
            "setfattr -x user.a f", "setfattr -n user.a -v 1 f", "f=old user.a=1"),
        .anyOrder(
            "xattr of a directory, delete inside", "mkdir d; echo old >d/f",
            "setfattr -n user.a -v 1 d", "rm d/f", "d/ user.a=1"),
    ]

    private static let editors = [
        MergeRow(
            "save, save", "echo old >f", "save one f", "save two f",
            "f=two", "f (conflict earlier)=one"),
        MergeRow(
            "save, edit", "echo old >f", "save one f", "echo two >f",
            "f=two", "f (conflict earlier)=one"),
        MergeRow(
            "edit, save", "echo old >f", "echo one >f", "save two f",
            "f=two", "f (conflict earlier)=one"),
        .anyOrder("save, rename", "echo old >f", "save new f", "mv f g", "g=new"),
        .anyOrder("save, delete", "echo old >f", "save new f", "rm f", "f=new"),
        MergeRow("save, chmod", "echo old >f", "save new f", "chmod 600 f", "f=new 600"),
        .anyOrder(
            "save, xattr", "echo old >f", "save new f", "setfattr -n user.a -v 1 f",
            "f=new user.a=1"),
        .anyOrder(
            "save, delete of the directory", "mkdir d; echo old >d/f", "save new d/f",
            "rm -r d", "d/", "d/f=new"),
        .anyOrder(
            "replace with a backup, edit", "echo old >f", "mv f f~; echo new >f", "echo edit >f",
            "f=new", "f~=edit"),
    ]

    private static func edits(_ name: String, _ file: String, _ shown: String, _ copy: String)
        -> MergeRow
    {
        MergeRow(
            name, "echo old >\(file)", "echo one >\(file)", "echo two >\(file)",
            "\(shown)=two", "\(copy)=one")
    }

    private static func repeated(_ text: String, _ count: Int) -> String {
        String(repeating: text, count: count)
    }

    private static let names = [
        edits("hidden file", ".bashrc", ".bashrc", ".bashrc (conflict earlier)"),
        edits("several dots", "a.tar.gz", "a.tar.gz", "a.tar (conflict earlier).gz"),
        edits(
            "bytes that are no text", "$'\\xff\\x01\\n%.x'", "\\xff\\x01\\x0a%.x",
            "\\xff\\x01\\x0a% (conflict earlier).x"),
        edits("what Git forbids", ".GIT", ".GIT", ".GIT (conflict earlier)"),
        edits("what the format reserves", "%dir", "%dir", "%dir (conflict earlier)"),
        edits("dots", "...", "...", ".. (conflict earlier)."),
        edits(
            "a name of 255 bytes", repeated("n", 251) + ".txt", repeated("n", 251) + ".txt",
            repeated("n", 218) + " (conflict earlier).txt"),
        edits(
            "255 bytes of two-byte characters", repeated("é", 127) + "x",
            repeated("\\xc3\\xa9", 127) + "x", repeated("\\xc3\\xa9", 111) + " (conflict earlier)"),
        edits(
            "name of a conflict copy", "'f (conflict x 2001-02-03 04.05.06).txt'",
            "f (conflict x 2001-02-03 04.05.06).txt", "f (conflict earlier).txt"),
        MergeRow(
            "two spellings of one letter", ":", "echo one >$'\\xc3\\xa9'",
            "echo two >$'e\\xcc\\x81'",
            "\\xc3\\xa9=one", "e\\xcc\\x81=two"),
        .anyOrder(
            "letters of either case", ":", "echo one >F", "echo two >f", "F=one", "f=two"),
    ]
}
