#!/usr/bin/perl
# A forking server in Perl: each connection is a child, which asks the parent by a pair of pipes. `server.pl PORT DIR`.
# Speaks what tests/apps/README.md tells.
use strict;
use warnings;
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use POSIX ":sys_wait_h";
use Time::HiRes qw(setitimer ITIMER_REAL sleep);

my ($port, $dir) = @ARGV;
my ($count, $ticks, %items) = (0, 0);
open(my $log, '>>', "$dir/log") or die "log: $!";
$log->autoflush(1);
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 64, ReuseAddr => 1)
    or die "listen: $!";
$SIG{ALRM} = sub { $ticks++ };
$SIG{CHLD} = 'DEFAULT';
setitimer(ITIMER_REAL, 0.01, 0.01);
my $select = IO::Select->new($server);
my %answer;    # the pipe to a child, by the pipe from it

sub connection {
    my ($client, $ask, $hear) = @_;
    setitimer(ITIMER_REAL, 0);
    while (defined(my $line = <$client>)) {
        print $ask $line;
        my $said = <$hear>;
        print $client $said;
    }
    exit 0;
}

sub accept_one {
    my $client = $server->accept or return;
    pipe(my $from, my $ask) or die "pipe: $!";
    pipe(my $hear, my $to) or die "pipe: $!";
    $_->autoflush(1) for $client, $ask, $to;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        close $_ for $from, $to, $server, map { ($_->[0], $_->[1]) } values %answer;
        connection($client, $ask, $hear);
    }
    close $_ for $client, $ask, $hear;
    $answer{$from->fileno} = [$from, $to];
    $select->add($from);
}

sub said {
    my ($asked) = @_;
    if ($asked eq "add\n") {
        $count++;
        $items{$count} = "item $count";
        print $log "$count\n";
        return "ok $count\n";
    }
    my $before = $ticks;
    for (1 .. 500) { last if $ticks > $before; sleep 0.02 }    # cut short by the alarm
    return "failed: the alarm does not ring\n" if $ticks == $before;
    return "failed: items\n" if keys(%items) != $count;
    my $echo = `echo new`;
    return $echo eq "new\n" ? "ok $count\n" : "failed: a new child said $echo\n";
}

while (1) {
    for my $ready ($select->can_read(0.2)) {
        if ($ready == $server) { accept_one(); next }
        my $to = $answer{$ready->fileno}[1];
        my $asked = '';
        while ($asked !~ /\n/) {
            my $read = sysread($ready, $asked, 64, length $asked);
            next if !defined $read && $!{EINTR};
            last if !$read;
        }
        if ($asked =~ /\n/) { print $to said($asked); next }
        $select->remove($ready);
        delete $answer{$ready->fileno};
    }
    1 while waitpid(-1, WNOHANG) > 0;
}
