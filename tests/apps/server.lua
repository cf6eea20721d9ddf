-- A server of coroutines in Lua, over select(2). `server.lua PORT DIR`. Speaks what tests/apps/README.md tells.
local socket = require "socket"

local port, dir = tonumber(arg[1]), arg[2]
local server = assert(socket.bind("127.0.0.1", port))
local log = assert(io.open(dir .. "/log", "a"))
log:setvbuf("no")
local count, items = 0, {}
local clients, talks = { server }, {}
server:settimeout(0)

local function said(asked)
  if asked == "add" then
    count = count + 1
    items[count] = "item " .. count
    log:write(count, "\n")
    return "ok " .. count .. "\n"
  end
  if #items ~= count then
    return "failed: items\n"
  end
  local pipe = io.popen("echo new")
  local echo = pipe:read("l")
  pipe:close()
  return echo == "new" and "ok " .. count .. "\n" or "failed: a new child\n"
end

local function talk(client)
  while true do
    local line, why = client:receive("*l")
    if line then
      client:send(said(line))
    elseif why == "timeout" then
      coroutine.yield()
    else
      return
    end
  end
end

while true do
  for _, ready in ipairs(socket.select(clients, nil, 0.2)) do
    if ready == server then
      local client = server:accept()
      if client then
        client:settimeout(0)
        clients[#clients + 1] = client
        talks[client] = coroutine.create(talk)
      end
    else
      assert(coroutine.resume(talks[ready], ready))
      if coroutine.status(talks[ready]) == "dead" then
        talks[ready] = nil
        ready:close()
        for i, client in ipairs(clients) do
          if client == ready then
            table.remove(clients, i)
            break
          end
        end
      end
    end
  end
end
