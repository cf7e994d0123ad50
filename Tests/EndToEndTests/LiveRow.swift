/// A row of the table of what happens to those who have a file or directory in use while another
/// node's change to it arrives.
///
/// Scripts and what is there are written as in `MergeRow`; a conflict name says `here` or `there` for the
/// node that wrote what bears it. `/f` is in the top directory.
struct LiveRow: Sendable, CustomStringConvertible {
    let name: String
    let setup: String
    /// A program here takes it into use, and is still at it when all that follows happens.
    let hold: String
    let there: String
    /// What is here when the other node's `wait` has returned.
    let meanwhile: [String]
    /// What the program does then, before it ends, and what it prints.
    let then: String
    let saw: String
    /// What both nodes have in the end.
    let end: [String]

    var description: String { name }

    init(
        _ name: String, _ setup: String, hold: String, there: String, meanwhile: [String],
        then: String = ":", saw: String = "", end: [String]
    ) {
        self.name = name
        self.setup = setup
        self.hold = hold
        self.there = there
        self.meanwhile = meanwhile.sorted()
        self.then = then
        self.saw = saw
        self.end = end.sorted()
    }

    /// Prints ten bytes of a file that it mapped, when told so.
    static let mappedReader = """
        my ($file, $flag) = @ARGV;
        my ($mmap, $write) = `uname -m` =~ /aarch64/ ? (222, 64) : (9, 1);
        open my $f, "<", $file or die "$file: $!";
        my $at = syscall($mmap, 0, 10000, 1, 1, fileno($f), 0);
        die "mmap: $!" if $at == -1;
        close $f;
        open my $o, ">", "$flag.mapped"; close $o;
        select undef, undef, undef, 0.02 until -e "$flag.read";
        syscall($write, 1, $at + 100, 10) == 10 or die "read: $!";
        """

    private static let large = "head -c 300000 /dev/zero | tr '\\0'"
    private static let page = "head -c 10000 /dev/zero | tr '\\0'"
    private static let stored =
        String(repeating: "o", count: 100) + "LATE" + String(repeating: "o", count: 9896)

    static let all = writers + removed + readers + directories

    private static let writers = [
        LiveRow(
            "opened for writing, edited there", "echo old >f", hold: "exec 3<>f",
            there: "echo theirs >f", meanwhile: ["f=old"], then: "echo ours >&3",
            end: ["f=ours", "f (conflict there)=theirs"]),
        LiveRow(
            "opened for writing and not written, edited there", "echo old >f", hold: "exec 3<>f",
            there: "echo theirs >f", meanwhile: ["f=old"], end: ["f=theirs"]),
        LiveRow(
            "written, edited there", "echo old >f", hold: "exec 3<>f; echo ours >&3",
            there: "echo theirs >f", meanwhile: ["f=ours"],
            end: ["f=ours", "f (conflict there)=theirs"]),
        LiveRow(
            "large and written, edited there", "\(large) o >f",
            hold: "exec 3>f; \(large) x >&3", there: "\(large) y >f",
            meanwhile: ["f=x*300000"],
            end: ["f=x*300000", "f (conflict there)=y*300000"]),
        LiveRow(
            "truncated by the open, edited there", "echo old >f", hold: "exec 3>f",
            there: "echo theirs >f", meanwhile: ["f="], then: "echo ours >&3",
            end: ["f=ours", "f (conflict there)=theirs"]),
        LiveRow(
            "written, truncated there", "echo old >f", hold: "exec 3<>f; echo ours >&3",
            there: ": >f", meanwhile: ["f=ours"], end: ["f=ours", "f (conflict there)="]),
        LiveRow(
            "stored through a mapping after the close, edited there", "\(page) o >f",
            hold: "perl -e \"$mapper\" f $flag & until test -e $flag.mapped; do sleep 0.02; done",
            there: "echo theirs >f", meanwhile: ["f=o*10000"],
            then: "touch $flag.store $flag.unmap; wait",
            end: ["f=\(stored)", "f (conflict there)=theirs"]),
        LiveRow(
            "written, chmod there", "echo old >f", hold: "exec 3<>f; echo ours >&3",
            there: "chmod 600 f; setfattr -n user.a -v 1 f", meanwhile: ["f=ours 600 user.a=1"],
            end: ["f=ours 600 user.a=1"]),
        LiveRow(
            "new and open, created there", ":", hold: "exec 3>f; echo ours >&3",
            there: "echo theirs >f", meanwhile: ["f=theirs", "f (conflict here)=ours"],
            end: ["f=theirs", "f (conflict here)=ours"]),
    ]

    private static let removed = [
        LiveRow(
            "written, removed there", "echo old >f", hold: "exec 3>>f; echo ours >&3",
            there: "rm f", meanwhile: [], then: "echo more >&3", end: ["f=old\\x0aours\\x0amore"]),
        LiveRow(
            "truncated by the open, removed there", "echo old >f", hold: "exec 3>f",
            there: "rm f", meanwhile: [], then: "echo ours >&3", end: ["f=ours"]),
        LiveRow(
            "opened for writing and not written, removed there", "echo old >f", hold: "exec 3<>f",
            there: "rm f", meanwhile: [], end: []),
        LiveRow(
            "written, renamed there", "echo old >f", hold: "exec 3<>f; echo ours >&3",
            there: "mv f g", meanwhile: ["g=ours"], then: "echo more >&3",
            end: ["g=ours\\x0amore"]),
        LiveRow(
            "written, replaced there", "echo old >f; echo theirs >g",
            hold: "exec 3<>f; echo ours >&3", there: "mv g f", meanwhile: ["f=theirs"],
            end: ["f=theirs", "f (conflict here)=ours"]),
        LiveRow(
            "written, saved there by an editor", "echo old >f", hold: "exec 3<>f; echo ours >&3",
            there: "save theirs f", meanwhile: ["f=theirs"],
            end: ["f=theirs", "f (conflict here)=ours"]),
        LiveRow(
            "written and unlinked, edited there", "echo old >f",
            hold: "exec 3<>f; rm f; echo ours >&3", there: "echo theirs >f",
            meanwhile: ["f=theirs"], then: "echo more >&3", end: ["f=theirs"]),
        LiveRow(
            "written by one name, the other removed there", "echo old >f; ln f g",
            hold: "exec 3<>g; echo ours >&3", there: "rm f", meanwhile: ["g=ours"],
            end: ["g=ours"]),
        LiveRow(
            "written by one name, that removed there", "echo old >f; ln f g",
            hold: "exec 3<>g; echo ours >&3", there: "rm g", meanwhile: ["f=ours"],
            end: ["f=ours"]),
    ]

    private static let readers = [
        LiveRow(
            "read, edited there", "echo old >f", hold: "exec 3<f", there: "echo theirs >f",
            meanwhile: ["f=theirs"], then: "cat <&3", saw: "old\n", end: ["f=theirs"]),
        LiveRow(
            "read and unlinked, edited there", "echo old >f", hold: "exec 3<f; rm f",
            there: "echo theirs >f", meanwhile: ["f=theirs"], then: "cat <&3", saw: "old\n",
            end: ["f=theirs"]),
        LiveRow(
            "read, removed there", "echo old >f", hold: "exec 3<f", there: "rm f",
            meanwhile: [], then: "cat <&3", saw: "old\n", end: []),
        LiveRow(
            "half read, replaced there", "\(large) o >f; \(large) x >g",
            hold: "exec 3<f; head -c 1 <&3 >/dev/null", there: "mv g f",
            meanwhile: ["f=x*300000"], then: "cat <&3 | tr -d x | wc -c", saw: "299999\n",
            end: ["f=x*300000"]),
        LiveRow(
            "mapped, truncated there", "\(page) o >f",
            hold:
                "perl -e \"$mappedReader\" f $flag & until test -e $flag.mapped; do sleep 0.02; done",
            there: ": >f", meanwhile: ["f="], then: "touch $flag.read; wait",
            saw: "oooooooooo", end: ["f="]),
    ]

    private static let directories = [
        LiveRow(
            "working directory, removed there", "mkdir d; echo old >d/f", hold: "cd d",
            there: "rm -r d", meanwhile: [],
            then: "ls -A; (echo new >x) 2>/dev/null || echo refused; cd ..; ls -A",
            saw: "refused\n", end: []),
        LiveRow(
            "working directory, renamed there", "mkdir d; echo old >d/f", hold: "cd d",
            there: "mv d e", meanwhile: ["e/", "e/f=old"], then: "echo new >g; ls", saw: "f\ng\n",
            end: ["e/", "e/f=old", "e/g=new"]),
        LiveRow(
            "working directory and removed, new file there", "mkdir d",
            hold: "cd d; rmdir ../d", there: "mkdir -p d; echo new >d/x",
            meanwhile: ["d/", "d/x=new"], end: ["d/", "d/x=new"]),
        LiveRow(
            "new file in a directory that is removed there", "mkdir d; echo old >d/f",
            hold: "cd d; exec 3>new", there: "rm -r d", meanwhile: ["d/", "d/new="],
            then: "echo ours >&3; ls", saw: "new\n", end: ["d/", "d/new=ours"]),
        LiveRow(
            "written file in a directory that is removed there", "mkdir d; echo old >d/rescued",
            hold: "cd d; exec 3<>rescued; echo ours >&3", there: "rm -r d", meanwhile: [],
            end: ["/rescued=ours"]),
    ]
}
