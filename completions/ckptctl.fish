# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_ckptctl_global_optspecs
    string join \n json no-pager H/host= h/help V/version
end

function __fish_ckptctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_ckptctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_ckptctl_using_subcommand
    set -l cmd (__fish_ckptctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c ckptctl -n "__fish_ckptctl_needs_command" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_needs_command" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -s V -l version -d 'Print version'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "enable" -d 'Register a group: a slice or units, and their subvolumes'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "disable" -d 'Forget a group and take its drop-ins back; its checkpoints stay'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "status" -d 'Show groups, or one group with its units'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "list" -d 'List checkpoints'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "show" -d 'Show everything known of a group or a checkpoint'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "checkpoint" -d 'Take a checkpoint'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "restore" -d 'Put a group back to a checkpoint'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "check" -d 'Say what stands against a checkpoint, without taking one'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "doctor" -d 'Look whether this host can do it'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "merge" -d 'Fold incrementals into the full checkpoint they rest on'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "verify" -d 'Read a checkpoint whole and compare its checksums'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "delete" -d 'Delete checkpoints: images and snapshots'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "prune" -d 'Delete what retention does not keep'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "export" -d 'Write a checkpoint to a file'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "import" -d 'Read a checkpoint from a file'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "jobs" -d 'List running jobs'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "cancel" -d 'Cancel a job'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "monitor" -d 'Show what happens, as it happens'
complete -c ckptctl -n "__fish_ckptctl_needs_command" -f -a "completions" -d 'Print the completion script for a shell'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand enable" -s n -l name -d 'Name of the group; needed for several services' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand enable" -s s -l subvolume -d 'A btrfs subvolume that belongs to the group, once for each' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand enable" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand enable" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand enable" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand enable" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand disable" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand disable" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand disable" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand disable" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand status" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand status" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand status" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand status" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand list" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand list" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand list" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand list" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand show" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand show" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand show" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand show" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand checkpoint" -s d -l description -d 'Free text kept with the checkpoint' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand checkpoint" -l tag -d 'A free word kept with the checkpoint, once for each' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand checkpoint" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand checkpoint" -l full -d 'An image that stands alone, also where an incremental would do'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand checkpoint" -l stop -d 'End the group at the instant of the checkpoint: nothing runs after it'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand checkpoint" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand checkpoint" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand checkpoint" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand restore" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand restore" -l lazy -d 'Let the members run before all of their memory is read'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand restore" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand restore" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand restore" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand check" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand check" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand check" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand check" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand doctor" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand doctor" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand doctor" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand merge" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand merge" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand merge" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand merge" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand verify" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand verify" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand verify" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand verify" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand delete" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand delete" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand delete" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand delete" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand prune" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand prune" -l all -d 'Every group that is registered'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand prune" -l dry-run -d 'Only say what would be deleted'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand prune" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand prune" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand prune" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand export" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand export" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand export" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand export" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand import" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand import" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand import" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand import" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand jobs" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand jobs" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand jobs" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand jobs" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand cancel" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand cancel" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand cancel" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand cancel" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand monitor" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand monitor" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand monitor" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand monitor" -s h -l help -d 'Print help'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand completions" -s H -l host -d 'Ask the ckptd of another host, over ssh' -r
complete -c ckptctl -n "__fish_ckptctl_using_subcommand completions" -l json -d 'Print JSON'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand completions" -l no-pager -d 'Do not pipe output into a pager'
complete -c ckptctl -n "__fish_ckptctl_using_subcommand completions" -s h -l help -d 'Print help'
