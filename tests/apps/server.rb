# A threaded server in Ruby, with a forked worker at a socket pair. `server.rb PORT DIR`.
# Speaks what tests/apps/README.md tells.
require 'socket'

port, dir = ARGV
near, far = UNIXSocket.pair
worker = fork do
  near.close
  while (line = far.gets)
    far.puts(line.to_i**2)
  end
end
far.close

count = 0
ticks = 0
items = {}
log = File.open("#{dir}/log", 'a')
log.sync = true
jobs = Queue.new
Thread.new { loop { sleep 0.005; ticks += 1 } }

# All of the state belongs to one thread; the others ask it.
Thread.new do
  loop do
    asked, answer = jobs.pop
    if asked == "add\n"
      count += 1
      items[count] = "item #{count}"
      log.write("#{count}\n")
      near.puts(count)
      squared = near.gets.to_i
      answer << (squared == count**2 ? "ok #{count}" : "failed at #{count}: the worker said #{squared}")
    else
      before = ticks
      1000.times { ticks == before ? sleep(0.005) : break }
      alive = Process.waitpid(worker, Process::WNOHANG).nil?
      answer << if ticks == before then 'failed: a sleeping thread stands still'
                elsif !alive then 'failed: the worker ended'
                elsif items.size != count then 'failed: items'
                elsif `echo new` != "new\n" then 'failed: a new child'
                else "ok #{count}"
                end
    end
  end
end

server = TCPServer.new('127.0.0.1', port.to_i)
loop do
  Thread.new(server.accept) do |client|
    answer = Queue.new
    while (line = client.gets)
      jobs << [line, answer]
      client.puts(answer.pop)
    end
  rescue SystemCallError
    nil
  ensure
    client.close
  end
end
